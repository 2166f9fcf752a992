"""Names of the settings, each a finding of its own."""

from __future__ import annotations

import socket

import pytest

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.doctor.findings import State
from comfy_cluster.doctor.names import check_names, look_up, names_of

KNOWN = {"a.lan": "10.0.0.1", "b.lan": "10.0.0.2"}


def resolve(hostname: str, port: int) -> tuple[str, int]:
    if hostname.startswith("10."):
        return hostname, port
    if hostname not in KNOWN:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return KNOWN[hostname], port


def static(*hostnames: str, index: int = 0) -> ClusterConfig:
    return ClusterConfig.static(index, [(hostname, 9998) for hostname in hostnames])


def test_each_name_is_looked_up_and_the_wrong_one_named() -> None:
    looked_up = look_up(static("a.lan", "b.lan", "c.lan"), resolve=resolve)
    findings = check_names(looked_up, own=lambda: {"10.0.0.1"})
    assert [each.state for each in findings] == [State.OK, State.OK, State.FAILURE]
    assert findings[1].text == "entry 1 of COMFY_CLUSTER_UDP_HOSTNAMES: b.lan is 10.0.0.2"
    assert findings[2].text.startswith("entry 2 of COMFY_CLUSTER_UDP_HOSTNAMES: c.lan has no addr")
    assert "Name or service not known" in findings[2].text
    assert "getent ahosts c.lan" in findings[2].advice


@pytest.mark.parametrize(("index", "state"), [(0, State.OK), (1, State.WARNING)])
def test_an_own_entry_that_is_another_machine_s_is_a_wrong_index(index: int, state: State) -> None:
    looked_up = look_up(static("10.0.0.1", "10.0.0.2", index=index), resolve=resolve)
    own = check_names(looked_up, own=lambda: {"127.0.0.1", "10.0.0.1"})[index]
    assert own.state is state
    assert ("INSTANCE_INDEX" in own.advice) is (state is State.WARNING)


def test_loopback_is_always_this_machine() -> None:
    looked_up = look_up(ClusterConfig.static(0, [("127.0.0.2", 9998), ("127.0.0.1", 9998)]))
    assert {each.state for each in check_names(looked_up, own=set)} == {State.OK}


def test_servers_and_own_names_in_stun_mode() -> None:
    config = ClusterConfig(
        instance_count=2,
        registration_mode=RegistrationMode.STUN,
        stun_servers=("https://a.example", "http://b.example:8089"),
        cluster_id="c",
        key="k" * 32,
        runpod_pod_id="pod1",
    )
    names = [(name.hostname, name.is_own) for name in names_of(config)]
    assert names == [
        ("a.example", False),
        ("b.example", False),
        ("pod1.runpod.internal", True),
    ]


def test_broadcast_mode_needs_no_name() -> None:
    config = ClusterConfig(instance_count=2, registration_mode=RegistrationMode.BROADCAST)
    assert look_up(config) == []
