"""What is to be said of one peer: how it is connected, or which layer keeps it from that.

Pure functions over what `participation.py` saw and what a probe told; no network.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comfy_cluster import identity
from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery.base import address_text
from comfy_cluster.doctor.findings import Finding, Layer, failure, ok, warning
from comfy_cluster.doctor.firewalls import rule_here, rules_there
from comfy_cluster.doctor.participation import Seen
from comfy_cluster.fastpath import MIN_PACKET_SIZE, PROBE_SIZES
from comfy_cluster.transport.peer_info import Address
from comfy_cluster.transport.reachability import Reachability

IPV4_HEADERS = 28  # bytes of IPv4 and UDP headers: RFC 791, RFC 768
IPV6_HEADERS = 48  # bytes, RFC 8200
# Seconds of a connection after which the probing of the path is over: three probes, each waiting
# for an answer for as long as the first guess of an RTT lasts, and one size that passed.
PROBING_TIME = 3.5


@dataclass(frozen=True, slots=True)
class Path:
    """The way to one peer, as this machine knows it."""

    mtu: int | None = None
    """Bytes, of the interface that leads there; None: not known."""
    reachability: Reachability | None = None
    """None: not probed."""


def is_settled(seen: Seen, path: Path) -> bool:
    """Nothing better will be seen of this peer."""
    size = seen.info.packet_size
    return seen.is_reached and size >= expected_size(seen.info.address, path.mtu)


def check_peer(seen: Seen, path: Path, *, config: ClusterConfig, seconds: float) -> list[Finding]:
    """`seconds`: for how long this instance listened."""
    if seen.is_reached:
        return [
            _reached(seen),
            *_check_observer(seen),
            *_check_mtu(seen, path),
            *_check_version(seen),
        ]
    return [_why_not_connected(seen, path, config, seconds)]


def check_silence(
    everybody: Sequence[Seen], probed: Mapping[int, Reachability], *, config: ClusterConfig
) -> list[Finding]:
    """Several peers of which none answers: that is hardly the fault of each of them."""
    silent = [
        each
        for each in everybody
        if not each.info.is_heard and probed.get(each.info.index) is Reachability.SILENT
    ]
    if len(silent) < 2 or len(silent) < len(everybody):
        return []
    port = config.direct_listen_port
    return [
        warning(
            Layer.FIREWALL,
            "this machine",
            f"none of the {len(silent)} others answers: look for the reason here first",
            advice=[f"let UDP {port} in: {rule_here(port)}", "in a cloud: in its security group"],
        )
    ]


def _subject(seen: Seen) -> str:
    return f"instance {seen.info.index}"


# Reached.


def _reached(seen: Seen) -> Finding:
    info = seen.info
    rtt = "" if info.rtt is None else f", RTT {info.rtt * 1000:.2f} ms"
    mtu = info.packet_size + _header_size(info.address)
    at_least = "at least " if info.packet_size == MIN_PACKET_SIZE else ""
    return ok(
        Layer.PEER,
        _subject(seen),
        f"{_where(seen)}: UDP passes both ways{rtt}, packets of {info.packet_size:,} bytes towards "
        f"it (MTU {at_least}{mtu:,})",
    )


def _check_observer(seen: Seen) -> list[Finding]:
    if not seen.info.is_observer:
        return []
    text = "another `comfy-cluster doctor` answers there, and the instance itself does not run"
    return [warning(Layer.PROCESS, _subject(seen), text, advice=["start ComfyUI there"])]


def _check_mtu(seen: Seen, path: Path) -> list[Finding]:
    info = seen.info
    wanted = expected_size(info.address, path.mtu)
    if info.packet_size >= wanted or path.mtu is None or info.address is None:
        return []
    mtu = info.packet_size + _header_size(info.address)
    if seen.connected_for < PROBING_TIME:
        text = f"the search for its MTU had {seen.connected_for:.1f} s only, and reached {mtu:,}"
        return [warning(Layer.MTU, _subject(seen), text, advice=["ask again with --seconds 10"])]
    if info.packet_size > MIN_PACKET_SIZE:
        text = (
            f"the path to it carries MTU {mtu:,}, this machine's interface is set to {path.mtu:,}"
        )
        advice = [
            f"fine, if that is the network's; else set MTU {path.mtu} there and in the switch"
        ]
        return [warning(Layer.MTU, _subject(seen), text, advice=advice)]
    text = (
        f"larger packets than {MIN_PACKET_SIZE:,} bytes vanish on the way to it, although this "
        f"machine's interface is set to MTU {path.mtu:,} (a black hole): transfers are slower"
    )
    largest = path.mtu - _header_size(info.address)
    advice = [
        f"find the largest size that passes, from this one down: ping -M do -s {largest} "
        f"{_plain(info.address[0])}",
        "set MTU to that and 28 on both machines: sudo ip link set dev INTERFACE mtu SIZE",
        "or look for the tunnel or the firewall that drops large UDP packets",
    ]
    return [warning(Layer.MTU, _subject(seen), text, advice=advice)]


def _check_version(seen: Seen) -> list[Finding]:
    own, theirs = identity.software_version(), seen.info.software_version
    if theirs == own:
        return []
    text = f"it runs version {theirs or 'unknown'}, this instance {own}"
    advice = ["install the same version everywhere"]
    return [warning(Layer.VERSION, _subject(seen), text, advice=advice)]


def expected_size(address: Address | None, mtu: int | None) -> int:
    """Bytes of the largest packet that probing should reach through an interface of that MTU."""
    if address is None or mtu is None:
        return MIN_PACKET_SIZE
    room = mtu - _header_size(address)
    return max((size for size in PROBE_SIZES if size <= room), default=MIN_PACKET_SIZE)


def _header_size(address: Address | None) -> int:
    return IPV6_HEADERS if address is not None and ":" in _plain(address[0]) else IPV4_HEADERS


def _plain(literal: str) -> str:
    """Without the prefix of an IPv4 address on an IPv6 socket."""
    parsed = ipaddress.ip_address(literal)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _where(seen: Seen) -> str:
    address = seen.info.address
    return "no address" if address is None else address_text((_plain(address[0]), address[1]))


# Not connected.


def _why_not_connected(seen: Seen, path: Path, config: ClusterConfig, seconds: float) -> Finding:
    subject = _subject(seen)
    if seen.refusal:
        return failure(
            Layer.HANDSHAKE,
            subject,
            f"{_where(seen)} answers and is refused: {seen.refusal}",
            advice=["compare `comfy-cluster info` here and there, set both alike, restart them"],
        )
    if seen.trouble:
        advice = ["set it right here or there; `comfy-cluster doctor` there tells the other half"]
        return failure(Layer.DISCOVERY, subject, seen.trouble, advice=advice)
    if seen.info.address is None:
        return _not_found(subject, config, seconds)
    if path.reachability is Reachability.BLOCKED_HERE:
        return _blocked_here(seen)
    if seen.info.is_heard:
        return _one_way(seen, path, config)
    if path.reachability is Reachability.SILENT or path.reachability is None:
        return _silent(seen, config)
    return _unreachable(seen, path.reachability)


def _not_found(subject: str, config: ClusterConfig, seconds: float) -> Finding:
    if config.registration_mode is RegistrationMode.BROADCAST:
        port = config.broadcast_port
        return failure(
            Layer.DISCOVERY,
            subject,
            f"no announcement of it came within {seconds:g} s on UDP port {port}",
            advice=[
                "start it; both machines must be in the same network",
                "clouds, VPNs and guest Wi-Fi carry no broadcasts: there use static or stun mode",
                f"here let UDP {port} in: {rule_here(port)}",
                *rules_there(port),
            ],
        )
    return failure(
        Layer.DISCOVERY,
        subject,
        f"its address was not found within {seconds:g} s",
        advice=["start it, with the same COMFY_CLUSTER_CLUSTER_ID and server"],
    )


def _blocked_here(seen: Seen) -> Finding:
    assert seen.info.address is not None
    port = seen.info.address[1]
    return failure(
        Layer.FIREWALL,
        _subject(seen),
        f"a firewall of this machine drops what is sent to {_where(seen)}",
        advice=[
            f"let UDP {port} out here: sudo ufw allow out {port}/udp",
            "or remove the rule in the output chain that this shows: sudo nft list ruleset",
        ],
    )


def _one_way(seen: Seen, path: Path, config: ClusterConfig) -> Finding:
    assert seen.info.address is not None
    if path.reachability is Reachability.NO_ROUTE:
        return _unreachable(seen, path.reachability)
    return failure(
        Layer.FIREWALL,
        _subject(seen),
        f"packets of {_where(seen)} arrive here, and those of this instance do not arrive there",
        advice=[
            *rules_there(seen.info.address[1]),
            f"does it know this instance by its right address? compare {_list_of(config)}",
        ],
    )


def _silent(seen: Seen, config: ClusterConfig) -> Finding:
    assert seen.info.address is not None
    port, own_port = seen.info.address[1], config.direct_listen_port
    lost = f" (connected for a while, then lost: {seen.loss})" if seen.loss else ""
    rules = [*rules_there(port), f"here let UDP {own_port} in: {rule_here(own_port)}"]
    if config.registration_mode is RegistrationMode.BROADCAST:
        text = f"its announcements arrive, and nothing comes from {_where(seen)}{lost}"
        return failure(Layer.FIREWALL, _subject(seen), text, advice=rules)
    if config.registration_mode is RegistrationMode.STUN:
        rules.append(
            "the server tells the others of instances, not of the doctor: where a firewall there "
            "lets only answers in, the instance itself may connect"
        )
    return failure(
        Layer.NETWORK,
        _subject(seen),
        f"nothing comes back from {_where(seen)}{lost}: the machine is off, a firewall there or "
        "here drops UDP without a word, or it knows this instance by another address",
        advice=[
            f"ping it, run `comfy-cluster doctor` there too, and compare {_list_of(config)}",
            *rules,
        ],
    )


def _list_of(config: ClusterConfig) -> str:
    is_static = config.registration_mode is RegistrationMode.STATIC
    return "COMFY_CLUSTER_UDP_HOSTNAMES" if is_static else "COMFY_CLUSTER_INSTANCE_ADDRESS"


def _unreachable(seen: Seen, reachability: Reachability) -> Finding:
    assert seen.info.address is not None
    where, port, subject = _where(seen), seen.info.address[1], _subject(seen)
    if reachability is Reachability.PORT_CLOSED:
        return failure(
            Layer.PROCESS,
            subject,
            f"the machine of {where} is up, and nothing listens at UDP port {port} there",
            advice=[
                "start ComfyUI there, with its COMFY_CLUSTER_* settings",
                "if it runs, its port is another one: see `comfy-cluster info` there",
            ],
        )
    if reachability is Reachability.PROHIBITED:
        return failure(
            Layer.FIREWALL,
            subject,
            f"a firewall there, or on the way, refuses packets to {where}",
            advice=rules_there(port),
        )
    if reachability is Reachability.NO_ROUTE:
        return failure(
            Layer.NETWORK,
            subject,
            f"this machine has no route to {where}",
            advice=["is the network (or VPN) up, and the address right? ip route shows the routes"],
        )
    return failure(
        Layer.NETWORK,
        subject,
        f"no machine answers at {where}",
        advice=["is it on, in the same network, and is the address right? ping it"],
    )
