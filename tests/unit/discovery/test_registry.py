"""The client's side of one rendezvous server: routes, and a message of its own for each failure."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Iterator
from email.utils import format_datetime

import pytest

from comfy_cluster.config import Role
from comfy_cluster.discovery import registry
from comfy_cluster.discovery.registry import (
    IndexTaken,
    Listed,
    NotRegistered,
    Registration,
    Registry,
)
from comfy_cluster.errors import RegistrationRefused, RegistryUnavailable
from tests.unit.discovery.rendezvous import Rendezvous, silent_server

KEY = "k" * 32
OWN = Registration("c", 2, "10.0.0.3", 9998, Role.FOLLOWER, boot_id="b1")
PREFIX = "Failed to register with STUN server: "


@pytest.fixture
def server() -> Iterator[Rendezvous]:
    with Rendezvous() as made:
        yield made


def client(url: str, *, key: str = KEY) -> Registry:
    return Registry(url, cluster_id="c", key=key)


def test_the_routes_of_the_contract(server: Rendezvous) -> None:
    asking = client(server.url)
    server.put(0)
    assert asking.register(OWN).instances == (
        Listed(0, "10.0.0.9", 9998),
        Listed(2, "10.0.0.3", 9998),
    )
    listing = asking.instances()
    assert listing is not None and len(listing.instances) == 2
    asking.heartbeat(2)
    asking.leave(2, timeout=5.0)
    with pytest.raises(NotRegistered):
        asking.heartbeat(2)
    assert server.asked == [
        "POST /register-instance",
        "GET /instances/c",
        "POST /heartbeat/c/2",
        "DELETE /instance/c/2",
        "POST /heartbeat/c/2",
    ]


def test_a_list_is_waited_for_where_the_server_tells_revisions() -> None:
    with Rendezvous(tells_revisions=True) as server:
        asking = client(server.url)
        listing = asking.instances()
        assert listing is not None and listing.revision
        assert asking.instances(listing.revision, wait=0.01) is None
        server.put(1)
        changed = asking.instances(listing.revision, wait=20.0)
        assert changed is not None and changed.instances == (Listed(1, "10.0.0.9", 9998),)


def test_entries_that_make_no_sense_are_left_out(server: Rendezvous) -> None:
    body = {
        "instances": [
            {"instance_id": 1, "address": "a", "port": 5},
            {"instance_id": "x", "address": "a", "port": 5},
            {"instance_id": "2", "address": "", "port": 5},
            {"instance_id": "3", "address": "a", "port": 70_000},
            {"instance_id": "3", "address": "a", "port": float("inf")},
            None,
        ]
    }
    server.failing = (200, body)
    listing = client(server.url).instances()
    assert listing is not None and listing.instances == (Listed(1, "a", 5),)


def test_a_wrong_key(server: Rendezvous) -> None:
    client(server.url).register(OWN)
    with pytest.raises(RegistrationRefused) as info:
        client(server.url, key="x" * 32).register(OWN)
    assert str(info.value).startswith(PREFIX + server.url)
    assert "refuses the key of cluster 'c'" in str(info.value)
    assert "COMFY_CLUSTER_KEY" in str(info.value) and "x" * 32 not in str(info.value)


def test_a_taken_index(server: Rendezvous) -> None:
    server.failing = (409, {"error": "instance 2 is registered from 10.0.0.8 and alive"})
    with pytest.raises(IndexTaken, match=r"alive"):
        client(server.url).register(OWN)


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RegistryUnavailable) as info:
            client(url).register(OWN)
    assert str(info.value).startswith(f"{PREFIX}{url} cannot be reached (Connection refused)")


def test_an_unknown_name() -> None:
    with pytest.raises(RegistryUnavailable, match=r"nowhere\.invalid:8089 cannot be reached"):
        client("http://nowhere.invalid:8089").register(OWN)


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ANSWER_TIMEOUT", 0.05)
    with silent_server() as url, pytest.raises(RegistryUnavailable, match="does not answer in"):
        client(url).register(OWN)


def test_an_answer_that_is_too_large_is_not_read_to_its_end(server: Rendezvous) -> None:
    server.stalling = "endless"
    with pytest.raises(RegistryUnavailable) as info:
        client(server.url).instances()
    text = str(info.value)
    assert text.startswith(f"{server.url} answers GET /v1/clusters/c with more than 8 MiB")
    assert "COMFY_CLUSTER_STUN_SERVER" in text


def test_json_without_a_bottom_is_no_json(server: Rendezvous) -> None:
    server.raw_answer = b"[" * 100_000
    with pytest.raises(RegistrationRefused, match="does not answer with JSON"):
        client(server.url).instances()


def test_no_tls(server: Rendezvous) -> None:
    url = server.url.replace("http:", "https:")
    with pytest.raises(RegistryUnavailable, match=r"TLS fails .* is it an https:// server"):
        client(url).register(OWN)


def test_another_program_answers(server: Rendezvous) -> None:
    server.raw_answer = b"<html>"
    with pytest.raises(RegistrationRefused, match="does not answer with JSON"):
        client(server.url).register(OWN)
    server.failing = (405, {})
    with pytest.raises(RegistrationRefused, match="answers 405"):
        client(server.url).register(OWN)


def test_a_web_site_is_no_rendezvous_server(server: Rendezvous) -> None:
    server.failing = (404, {})
    with pytest.raises(RegistrationRefused) as info:
        client(server.url).register(OWN)
    assert str(info.value).startswith(f"{PREFIX}{server.url} has no rendezvous server's routes")
    assert "COMFY_CLUSTER_STUN_SERVER" in str(info.value)


@pytest.mark.parametrize(
    ("told", "taken"), [(1e-9, 0.1), (5, 5.0), (float("inf"), 300.0), (10**400, 300.0), (-1, None)]
)
def test_a_servers_interval_has_bounds(
    server: Rendezvous, told: float, taken: float | None
) -> None:
    server.failing = (200, {"heartbeat_interval_s": told})
    assert client(server.url).register(OWN).heartbeat_interval == taken


def test_a_server_in_trouble(server: Rendezvous) -> None:
    server.failing = (503, {"error": "the store is away"})
    with pytest.raises(RegistryUnavailable, match="answers 503: the store is away"):
        client(server.url).register(OWN)


def test_a_proxy_is_not_asked_for_a_server_near_by(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    client(server.url).register(OWN)
    with pytest.raises(RegistryUnavailable, match=r"by the proxy of this environment .*NO_PROXY"):
        client("http://registry.example:8089").register(OWN)


def test_what_a_proxy_forbids_is_no_wrong_key(server: Rendezvous) -> None:
    server.content_type = "text/html"
    server.failing = (403, {})
    with pytest.raises(RegistrationRefused) as info:
        client(server.url).register(OWN)
    assert "KEY" not in str(info.value) and "answers 403" in str(info.value)


def test_clocks_that_differ_are_told_once(
    server: Rendezvous, caplog: pytest.LogCaptureFixture
) -> None:
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=200)
    asking = client(server.url)
    asking.instances()
    assert asking.clock_text == ""
    server.headers["Date"] = format_datetime(later, usegmt=True)
    for _ in range(2):
        asking.instances()
    assert "s behind that of" in asking.clock_text
    assert sum("clock of this machine" in each.message for each in caplog.records) == 1


def test_a_redirect_says_what_to_set(server: Rendezvous) -> None:
    server.failing = (302, {})
    for target, shown in (
        ("https://elsewhere.example/x/v1/clusters/c?a=b", "'https://elsewhere.example/x'"),
        ("http://[::1", r"'http://[::1'"),
        ("http://\xff\x1b/", r"'http://\xff\x1b/'"),
        ("http://long/" + "x" * 5_000, "'http://long/" + "x" * 187),
    ):
        server.headers["Location"] = target
        with pytest.raises(RegistrationRefused) as info:
            client(server.url).instances()
        expected = f"{server.url} redirects to {shown}: set COMFY_CLUSTER_STUN_SERVER to that"
        assert str(info.value).startswith(expected)
