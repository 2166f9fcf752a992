"""Rendezvous servers: reachable, key, clock."""

from __future__ import annotations

import dataclasses
import datetime
from email.utils import format_datetime

import pytest

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery.registry import CLOCK_TOLERANCE
from comfy_cluster.doctor.findings import Layer, State
from comfy_cluster.doctor.servers import check_servers, is_held
from tests.unit.discovery.rendezvous import Rendezvous

KEY = "k" * 32


def config_at(*urls: str, key: str = KEY) -> ClusterConfig:
    return ClusterConfig(
        instance_count=2,
        registration_mode=RegistrationMode.STUN,
        stun_servers=urls,
        cluster_id="c",
        key=key,
    )


def test_a_server_that_takes_the_key_tells_who_is_there() -> None:
    with Rendezvous() as server:
        server.put(1)
        (finding,) = check_servers(config_at(server.url))
    assert finding.state is State.OK
    assert finding.text == "answers and takes the key; registered: 1"


def test_a_wrong_key_is_named() -> None:
    with Rendezvous() as server:
        server.keys["c"] = "another key" * 3
        (finding,) = check_servers(config_at(server.url))
    assert (finding.layer, finding.state) == (Layer.SERVER, State.FAILURE)
    assert "refuses the key of cluster 'c'" in finding.text
    assert "COMFY_CLUSTER_KEY" in finding.advice


def test_what_may_be_a_wrong_key_or_a_cluster_that_nobody_registered_is_both() -> None:
    with Rendezvous() as server:
        server.hides_unknown = True
        (finding,) = check_servers(config_at(server.url))
    assert finding.state is State.FAILURE
    assert "refuses the key of cluster 'c'" in finding.text
    assert finding.text.endswith("; or no instance has registered it there yet")
    assert "start the leader first" in finding.advice and "COMFY_CLUSTER_KEY" in finding.advice


def test_a_cluster_that_nobody_registered_is_no_wrong_key() -> None:
    with Rendezvous() as server:
        server.failing = (404, {"error": "no such cluster"})
        (finding,) = check_servers(config_at(server.url))
    assert finding.state is State.WARNING
    assert finding.text == (
        f"{server.url} knows no cluster 'c': no instance has registered it there yet"
    )
    assert "start the leader first" in finding.advice and "KEY" not in finding.advice


def test_a_redirect_is_no_wrong_key() -> None:
    with Rendezvous() as server:
        server.failing = (302, {})
        server.headers["Location"] = "http://[::1"
        (finding,) = check_servers(config_at(server.url))
    assert finding.state is State.FAILURE
    assert "redirects to 'http://[::1': set COMFY_CLUSTER_STUN_SERVER" in finding.text
    assert "KEY" not in finding.advice


def test_this_instance_is_registered_from_elsewhere() -> None:
    with Rendezvous() as one, Rendezvous() as other:
        one.put(0)
        one.put(1)
        other.put(0)
        findings = check_servers(config_at(one.url, other.url))
    assert [each.state for each in findings] == [State.OK, State.OK, State.FAILURE]
    assert is_held(findings) and not is_held(findings[:2])
    assert findings[2].subject == "this instance"
    assert "instance 0 is registered from 10.0.0.9:9998, which is not here" in findings[2].text
    assert one.url in findings[2].text and other.url in findings[2].text
    assert "COMFY_CLUSTER_INSTANCE_INDEX" in findings[2].advice


@pytest.mark.parametrize("address", ["127.0.0.1", "me.example"])
@pytest.mark.parametrize("port", [9998, 9997])
def test_this_instance_may_be_registered_from_here(address: str, port: int) -> None:
    """Elsewhere is another port of this machine too."""
    with Rendezvous() as server:
        server.put(0, address=address)
        config = dataclasses.replace(
            config_at(server.url), instance_address="me.example", direct_listen_port=port
        )
        assert is_held(check_servers(config)) is (port != 9998)


def test_of_two_servers_the_one_that_is_away_is_named() -> None:
    with Rendezvous() as gone:
        pass
    with Rendezvous() as server:
        findings = check_servers(config_at(gone.url, server.url))
    assert [each.state for each in findings] == [State.FAILURE, State.OK]
    assert f"{gone.url} cannot be reached" in findings[0].text
    assert "curl" in findings[0].advice


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_off_is_a_warning(hours: int) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    assert CLOCK_TOLERANCE < 3600
    with Rendezvous() as server:
        server.headers["Date"] = format_datetime(now + datetime.timedelta(hours=hours), usegmt=True)
        findings = check_servers(config_at(server.url))
    assert [(each.layer, each.state) for each in findings] == [
        (Layer.SERVER, State.OK),
        (Layer.CLOCK, State.WARNING),
    ]
    assert ("ahead of" if hours < 0 else "behind") in findings[1].text


def test_other_modes_have_no_server() -> None:
    assert check_servers(ClusterConfig.static(0, [("a", 1), ("b", 1)])) == []
