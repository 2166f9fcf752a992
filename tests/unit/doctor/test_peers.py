"""What is said of a peer, for each fault that the doctor claims to name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from comfy_cluster import __version__
from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.doctor.findings import Finding, Layer, State
from comfy_cluster.doctor.participation import Seen
from comfy_cluster.doctor.peers import PROBING_TIME, Path, check_peer, check_silence, is_settled
from comfy_cluster.transport.peer_info import PeerInfo
from comfy_cluster.transport.reachability import Reachability

ADDRESS = ("10.0.0.2", 9998)
STATIC = ClusterConfig.static(0, [("10.0.0.1", 9998), ADDRESS])
BROADCAST = ClusterConfig(instance_count=2, registration_mode=RegistrationMode.BROADCAST)
ABSENT = PeerInfo(1, ADDRESS)


def connected(packet_size: int = 1472, *, seconds: float = 5.0, **values: Any) -> Seen:
    given = {"software_version": __version__, "rtt": 0.0004, **values}
    info = PeerInfo(1, ADDRESS, True, packet_size=packet_size, is_heard=True, **given)
    return Seen(info, connected_for=seconds)


def findings_of(
    seen: Seen, path: Path | None = None, *, config: ClusterConfig = STATIC
) -> list[Finding]:
    return check_peer(seen, path or Path(1500), config=config, seconds=5)


def failure_of(
    seen: Seen, reachability: Reachability | None = None, *, config: ClusterConfig = STATIC
) -> Finding:
    (finding,) = findings_of(seen, Path(1500, reachability), config=config)
    assert finding.state is State.FAILURE
    assert finding.subject == "instance 1"
    assert finding.advice
    return finding


def test_a_connected_peer_is_told_with_its_numbers() -> None:
    (finding,) = findings_of(connected())
    assert finding.state is State.OK
    assert finding.text == (
        "10.0.0.2:9998: UDP passes both ways, RTT 0.40 ms, packets of 1,472 bytes towards it "
        "(MTU 1,500)"
    )


def test_a_server_tells_nobody_of_the_doctor() -> None:
    """So a firewall that lets only answers in keeps it out, and not always the instance."""
    stun = ClusterConfig(
        instance_count=2,
        registration_mode=RegistrationMode.STUN,
        stun_servers=("http://a",),
        cluster_id="c",
        key="k" * 32,
    )
    for config, is_told in ((stun, True), (STATIC, False)):
        finding = failure_of(Seen(ABSENT), Reachability.SILENT, config=config)
        assert ("the instance itself may connect" in finding.advice) is is_told


def test_a_doctor_in_place_of_an_instance_is_no_instance() -> None:
    info = dataclasses.replace(connected().info, is_connected=False, is_observer=True)
    reached, observer = findings_of(Seen(info, connected_for=5.0))
    assert (reached.layer, reached.state) == (Layer.PEER, State.OK)
    assert (observer.layer, observer.state) == (Layer.PROCESS, State.WARNING)
    assert "start ComfyUI there" in observer.advice
    assert is_settled(Seen(info), Path(1500)) and not Seen(info).needs_probe


def test_an_ipv4_peer_on_an_ipv6_socket_has_ipv4_headers() -> None:
    seen = connected()
    info = dataclasses.replace(seen.info, address=("::ffff:10.0.0.2", 9998))
    assert "10.0.0.2:9998: UDP" in findings_of(dataclasses.replace(seen, info=info))[0].text
    ipv6 = dataclasses.replace(seen.info, address=("fd00::2", 9998), packet_size=1452)
    (finding,) = findings_of(dataclasses.replace(seen, info=ipv6))
    assert finding.text.startswith("[fd00::2]:9998: UDP")
    assert "MTU 1,500" in finding.text


def test_a_black_hole_is_named_when_probing_had_its_time() -> None:
    _, finding = findings_of(connected(1200), Path(9000))
    assert (finding.layer, finding.state) == (Layer.MTU, State.WARNING)
    assert "black hole" in finding.text and "MTU 9,000" in finding.text
    assert "ping -M do -s 8972 10.0.0.2" in finding.advice
    _, early = findings_of(connected(1200, seconds=PROBING_TIME / 2), Path(9000))
    assert "black hole" not in early.text
    assert "--seconds" in early.advice


def test_a_path_that_is_narrower_than_the_interface() -> None:
    _, finding = findings_of(connected(1472), Path(9000))
    assert (finding.layer, finding.state) == (Layer.MTU, State.WARNING)
    assert "carries MTU 1,500" in finding.text and "9,000" in finding.text


@pytest.mark.parametrize(("size", "mtu"), [(1200, None), (1200, 1280), (8972, 1500), (8952, 8990)])
def test_a_path_that_carries_what_the_interface_does_is_fine(size: int, mtu: int | None) -> None:
    assert [each.state for each in findings_of(connected(size), Path(mtu))] == [State.OK]
    assert is_settled(connected(size), Path(mtu))


def test_what_can_still_become_better_is_waited_for() -> None:
    assert not is_settled(connected(1200), Path(1500))
    assert not is_settled(Seen(ABSENT), Path(1500))


def test_another_version_is_a_warning() -> None:
    _, finding = findings_of(connected(software_version="0.0.9"))
    assert (finding.layer, finding.state) == (Layer.VERSION, State.WARNING)
    assert "0.0.9" in finding.text


def test_a_refusal_explains_itself() -> None:
    text = "instance 1 counts 3 instances, this instance 2: INSTANCE_COUNT must be the same"
    finding = failure_of(Seen(ABSENT, refusal=text))
    assert finding.layer is Layer.HANDSHAKE
    assert text in finding.text


def test_a_trouble_of_the_discovery_is_told() -> None:
    finding = failure_of(Seen(PeerInfo(1), trouble="it is not registered at http://a"))
    assert (finding.layer, finding.text) == (Layer.DISCOVERY, "it is not registered at http://a")


def test_packets_that_pass_one_way_only() -> None:
    seen = Seen(dataclasses.replace(ABSENT, is_heard=True))
    finding = failure_of(seen, Reachability.SILENT)
    assert finding.layer is Layer.FIREWALL
    assert "arrive here, and those of this instance do not arrive there" in finding.text
    assert "sudo ufw allow 9998/udp" in finding.advice
    blocked = failure_of(seen, Reachability.BLOCKED_HERE)
    assert "a firewall of this machine drops what is sent" in blocked.text


@pytest.mark.parametrize(
    ("reachability", "layer", "text"),
    [
        (Reachability.SILENT, Layer.NETWORK, "nothing comes back"),
        (Reachability.NO_ROUTE, Layer.NETWORK, "no route to 10.0.0.2:9998"),
        (Reachability.UNREACHABLE, Layer.NETWORK, "no machine answers at 10.0.0.2:9998"),
        (Reachability.BLOCKED_HERE, Layer.FIREWALL, "a firewall of this machine"),
        (Reachability.PROHIBITED, Layer.FIREWALL, "refuses packets"),
        (Reachability.PORT_CLOSED, Layer.PROCESS, "nothing listens at UDP port 9998"),
    ],
)
def test_what_a_packet_tells_names_the_layer(
    reachability: Reachability, layer: Layer, text: str
) -> None:
    finding = failure_of(Seen(ABSENT), reachability)
    assert finding.layer is layer
    assert text in finding.text


def test_a_peer_that_was_lost_meanwhile() -> None:
    finding = failure_of(Seen(ABSENT, loss="silent for 3.0 s"), Reachability.SILENT)
    assert "then lost: silent for 3.0 s" in finding.text


def test_in_broadcast_mode_an_address_means_that_announcements_arrive() -> None:
    finding = failure_of(Seen(ABSENT), Reachability.SILENT, config=BROADCAST)
    assert finding.layer is Layer.FIREWALL
    assert "its announcements arrive" in finding.text
    nobody = failure_of(Seen(PeerInfo(1)), config=BROADCAST)
    assert nobody.layer is Layer.DISCOVERY
    assert "UDP port 9997" in nobody.text


def test_only_what_is_not_explained_is_probed() -> None:
    assert Seen(ABSENT).needs_probe
    assert Seen(dataclasses.replace(ABSENT, is_heard=True)).needs_probe
    assert not Seen(PeerInfo(1)).needs_probe
    assert not Seen(ABSENT, refusal="wrong count").needs_probe
    assert not Seen(ABSENT, trouble="no name").needs_probe
    assert not connected().needs_probe


def test_when_nobody_answers_this_machine_comes_first() -> None:
    silent = [Seen(PeerInfo(index, ADDRESS)) for index in (1, 2)]
    probed = dict.fromkeys((1, 2), Reachability.SILENT)
    (finding,) = check_silence(silent, probed, config=STATIC)
    assert (finding.layer, finding.subject) == (Layer.FIREWALL, "this machine")
    assert "UDP 9998" in finding.advice
    assert check_silence(silent[:1], probed, config=STATIC) == []
    assert check_silence([*silent, connected()], probed, config=STATIC) == []
    closed = probed | {2: Reachability.PORT_CLOSED}
    assert check_silence(silent, closed, config=STATIC) == []
