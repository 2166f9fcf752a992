"""The order of the checks, with real sockets on 127.0.0.1."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Iterator

from comfy_cluster.config import ClusterConfig, SharedMemory
from comfy_cluster.doctor.examination import examine
from comfy_cluster.doctor.findings import Finding, Layer, Report, State
from comfy_cluster.doctor.participation import Participation
from comfy_cluster.protocol.events import PeerConnected, PeerLost, StrangerHeard
from comfy_cluster.runtime import build_discovery
from comfy_cluster.transport.sockets import open_udp_socket
from comfy_cluster.transport.transport import Transport
from tests.unit.discovery.rendezvous import Rendezvous

KEY = "k" * 32
LONG = 20.0  # seconds; it ends when all is settled
SHORT = 0.5


def environment(index: int, ports: list[int], **settings: str) -> dict[str, str]:
    ours = {
        "INSTANCE_COUNT": str(len(ports)),
        "INSTANCE_INDEX": str(index),
        "ROLE": "FOLLOWER" if index else "LEADER",
        "REGISTRATION_MODE": "static",
        "UDP_HOSTNAMES": ",".join(f"127.0.0.1:{port}" for port in ports),
        "MEMORY_BUDGET": "256MB",
        **settings,
    }
    return {f"COMFY_CLUSTER_{name}": value for name, value in ours.items()}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_udp_socket("127.0.0.1", 0)) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in opened]


@contextlib.contextmanager
def instance(environ: dict[str, str]) -> Iterator[Transport]:
    """A member of the cluster, without the layers above."""
    config = ClusterConfig.from_env(environ)
    transport = Transport(dataclasses.replace(config, shared_memory=SharedMemory.OFF))
    discovery = build_discovery(config)

    def on_event(event: object) -> None:
        if isinstance(event, StrangerHeard):
            discovery.on_heard(event.peer, event.address, is_observer=event.is_observer)

    transport.add_peer_listener(on_event)
    transport.start()
    try:
        discovery.start(transport.add_member, lambda _: None)
        yield transport
    finally:
        discovery.close()
        transport.close()


def listening(transport: Transport) -> list[object]:
    """What a member is told of its peers coming and going."""
    events: list[object] = []
    transport.add_peer_listener(
        lambda event: events.append(event) if isinstance(event, PeerConnected | PeerLost) else None
    )
    return events


def of_layer(report: Report, layer: Layer) -> list[Finding]:
    return [each for each in report.findings if each.layer is layer]


def test_a_wrong_setting_ends_it() -> None:
    report = examine({"COMFY_CLUSTER_INSTANCE_COUNT": "two"}, seconds=SHORT)
    (finding,) = report.findings
    assert (finding.layer, finding.state) == (Layer.SETTINGS, State.FAILURE)
    assert report.has_failed and report.instance_count == 0


def test_a_cluster_of_one_is_well() -> None:
    report = examine({}, seconds=SHORT)
    assert not report.has_failed
    assert (report.connected_count, report.instance_count) == (1, 1)
    assert "cluster of one" in report.findings[0].text


def test_all_well_ends_early_and_others_take_it_for_no_member() -> None:
    ports = free_ports(2)
    with instance(environment(0, ports)) as other:
        events = listening(other)
        for _ in range(2):  # the second one is a restarted doctor for the other
            notes: list[str] = []
            report = examine(environment(1, ports), seconds=LONG, note=notes.append)
            assert not report.has_failed, report.to_json()
            assert (report.connected_count, report.instance_count) == (2, 2)
            assert "UDP passes both ways" in of_layer(report, Layer.PEER)[0].text
            assert notes == ["Looking from the place of instance 1 for 20 s at most ..."]
        assert other.stats()["observers_connected"] == 2
        assert other.stats()["connections_made"] == 0
        assert events == []


def test_two_doctors_reach_each_other_and_say_that_no_instance_is_there() -> None:
    ports = free_ports(2)
    with Participation(ClusterConfig.from_env(environment(0, ports))):
        report = examine(environment(1, ports), seconds=LONG)
    assert not report.has_failed, report.to_json()
    assert report.connected_count == 1
    assert "UDP passes both ways" in of_layer(report, Layer.PEER)[0].text
    (finding,) = of_layer(report, Layer.PROCESS)
    assert finding.state is State.WARNING and "another `comfy-cluster doctor`" in finding.text
    assert not of_layer(report, Layer.MTU)


def test_a_process_that_does_not_run_is_named() -> None:
    report = examine(environment(0, free_ports(2)), seconds=SHORT)
    assert report.has_failed
    assert report.connected_count == 1
    (finding,) = of_layer(report, Layer.PROCESS)
    assert finding.subject == "instance 1"
    assert "start ComfyUI there" in finding.advice


def test_a_wrong_count_is_named() -> None:
    ports = free_ports(3)
    with instance(environment(1, ports)):
        report = examine(environment(0, ports[:2]), seconds=SHORT)
    (finding,) = of_layer(report, Layer.HANDSHAKE)
    assert "counts 3 instances, this instance 2" in finding.text


def test_addresses_in_another_order_are_named() -> None:
    ports = free_ports(3)
    other = [ports[0], ports[2], ports[1]]
    with instance(environment(1, other)):
        report = examine(environment(0, ports), seconds=SHORT)
    (finding,) = of_layer(report, Layer.HANDSHAKE)
    assert "the address of instance 2 answers as instance 1" in finding.text


def test_with_the_port_taken_the_rest_is_examined() -> None:
    ports = free_ports(3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken, instance(environment(2, ports)):
        taken.bind(("0.0.0.0", ports[0]))
        report = examine(environment(0, ports), seconds=LONG)
    assert report.connected_count is None
    assert "stop ComfyUI" in of_layer(report, Layer.PORT)[0].advice
    (finding,) = of_layer(report, Layer.PROCESS)
    assert finding.subject == "instance 1"
    assert not of_layer(report, Layer.NETWORK), "a silent peer is no fault here"


def stun_environment(index: int, server: Rendezvous, port: int, key: str = KEY) -> dict[str, str]:
    settings = {
        "INSTANCE_COUNT": "2",
        "REGISTRATION_MODE": "stun",
        "STUN_SERVER": server.url,
        "CLUSTER_ID": "c",
        "KEY": key,
        "INSTANCE_ADDRESS": "127.0.0.1",
        "DIRECT_LISTEN_PORT": str(port),
    }
    environ = environment(index, [], **settings)
    del environ["COMFY_CLUSTER_UDP_HOSTNAMES"]
    return environ


def test_a_server_with_the_right_key_and_with_a_wrong_one() -> None:
    ports = free_ports(2)
    with Rendezvous() as server, instance(stun_environment(1, server, ports[1])):
        server.wait_for("POST /register-instance")
        well = examine(stun_environment(0, server, ports[0]), seconds=LONG)
        wrong = examine(stun_environment(0, server, ports[0], "x" * 32), seconds=SHORT)
    assert not well.has_failed, well.to_json()
    assert well.connected_count == 2
    assert of_layer(well, Layer.SERVER)[0].text.endswith("registered: 1")
    assert wrong.has_failed
    assert "refuses the key" in of_layer(wrong, Layer.SERVER)[0].text


def test_with_a_server_both_sides_see_what_passes_and_nothing_is_registered() -> None:
    ports = free_ports(2)
    with Rendezvous() as server, instance(stun_environment(1, server, ports[1])) as other:
        server.wait_for("POST /register-instance")
        registered = dict(server.instances)
        report = examine(stun_environment(0, server, ports[0]), seconds=LONG)
        assert server.instances == registered
        assert other.stats()["observers_connected"] == 1
    assert not report.has_failed, report.to_json()
    assert "UDP passes both ways" in of_layer(report, Layer.PEER)[0].text


def test_an_instance_that_runs_elsewhere_is_this_instance_s_own_failure() -> None:
    """The others say nothing to whoever looks in its place: that is no fault of theirs."""
    ports = free_ports(3)
    with Rendezvous() as server, contextlib.ExitStack() as stack:
        leader, _ = (
            stack.enter_context(instance(stun_environment(index, server, ports[index])))
            for index in range(2)
        )
        deadline = time.monotonic() + LONG
        while leader.stats()["connections_made"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        report = examine(stun_environment(1, server, ports[2]), seconds=SHORT)
    (finding,) = [each for each in report.findings if each.state is State.FAILURE]
    assert (finding.layer, finding.subject) == (Layer.DISCOVERY, "this instance")
    assert f"instance 1 is registered from 127.0.0.1:{ports[1]}" in finding.text


def test_json_has_all_of_it() -> None:
    told = json.loads(examine({}, seconds=SHORT).to_json())
    assert told["has_failed"] is False
    assert told["connected_count"] == told["instance_count"] == 1
    assert told["findings"][0]["state"] == "ok"
