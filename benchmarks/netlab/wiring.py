"""Commands that make a lab's devices, queues and rules: text for `ip -batch`, `tc -batch`, `nft`.

How it works. All devices but the hosts' own are in one namespace, the switch:

    host 0: eth0 ---- port0 > (relay0 >) (up0 >) bridge0 > port1 ---- eth0 :host 1

What a host sends enters at its port. With a delay a rule hands it to `relay0`, a TAP device: the
relay's process reads it there and writes it back when its time has come. The next rule hands it to
`up0`, an ifb device whose token bucket (tbf) is the host's uplink; with the bottleneck `host` the
bucket is at eth0 instead, and `up0` is not there. The bridge forwards by fixed addresses, and drops
the lost ones. With more than two hosts a second bucket, at the receiver's port, is its downlink;
with two it would change nothing, and it costs a timer a packet.

Queues and losses must count single packets. Super-packets (GSO) cross the relay whole, which is
what makes it cheap, and the bucket cuts them before it queues them. Where there is no bucket in the
switch, or where the relay reorders, eth0 does without segmentation offload, and the host's kernel
cuts them. Nothing merges packets again but the receiver's eth0 (GRO), behind everything.
"""

from __future__ import annotations

import itertools

from benchmarks.netlab.profile import LinkProfile

BRIDGE = "bridge0"
HOST_DEVICE = "eth0"
LOSS_STEPS = 1_000_000  # loss is a multiple of 1 / LOSS_STEPS
RELAY_QUEUE_FRAMES = 20_000  # room for what arrives while the relay is not scheduled
PORT_QUEUE_PACKETS = 20_000
PEAK_RATE = "50gbit"  # no limit beside any rate; its bucket is what cuts super-packets
LOST = "lost{}"  # counters, by host
OFFERED = "offered{}"


def address(index: int) -> str:
    return f"10.77.0.{index + 1}"


def hardware_address(index: int) -> str:
    return f"02:cc:00:00:00:{index + 1:02x}"


def port(index: int) -> str:
    return f"port{index}"


def uplink(index: int) -> str:
    return f"up{index}"


def relay_device(index: int) -> str:
    return f"relay{index}"


def switch_links(profile: LinkProfile, hosts: list[str]) -> str:
    """For `ip -batch` in the switch; `hosts` are the names of the hosts' namespaces."""
    lines = [f"link add name {BRIDGE} mtu {profile.mtu} type bridge mcast_snooping 0"]
    lines += [f"link set {BRIDGE} up"]
    for index, host in enumerate(hosts):
        lines += _port_links(profile, index, host)
    return "\n".join(lines) + "\n"


def _port_links(profile: LinkProfile, index: int, host: str) -> list[str]:
    mtu, name = profile.mtu, port(index)
    lines = [
        f"link add name {name} mtu {mtu} type veth peer name {HOST_DEVICE} mtu {mtu} netns {host}",
        f"link set {name} master {BRIDGE} up",
    ]
    if has_uplink_device(profile):
        lines += [f"link add name {uplink(index)} mtu {mtu} type ifb"]
        lines += [f"link set {uplink(index)} up"]
    if profile.needs_relay:
        relay = relay_device(index)
        lines += [
            f"tuntap add dev {relay} mode tap vnet_hdr",
            f"link set {relay} mtu {mtu} txqueuelen {RELAY_QUEUE_FRAMES}",
            f"link set {relay} master {BRIDGE} up",
            f"link set {relay} type bridge_slave learning off "
            "flood off mcast_flood off bcast_flood off",
        ]
    return lines


def has_uplink_device(profile: LinkProfile) -> bool:
    return profile.rate is not None and profile.bottleneck == "switch"


def switch_forwarding(count: int) -> str:
    """For `bridge -batch`: which host is behind which port."""
    return "".join(
        f"fdb replace {hardware_address(index)} dev {port(index)} master static\n"
        for index in range(count)
    )


def switch_queues(profile: LinkProfile, count: int) -> str:
    """For `tc -batch` in the switch."""
    if profile.is_plain:
        return ""
    lines = [_bucket(profile, uplink(index)) for index in range(count)]
    lines = lines if has_uplink_device(profile) else []
    for index in range(count):
        if profile.rate is not None and count > 2:
            lines += [_bucket(profile, port(index))]
        else:  # veth's own queue is too short for a machine that is busy elsewhere for a while
            lines += [f"qdisc add dev {port(index)} root pfifo limit {PORT_QUEUE_PACKETS}"]
    return "".join(f"{line}\n" for line in lines)


def host_queues(profile: LinkProfile) -> str:
    """For `tc -batch` in a host."""
    if profile.rate is None or profile.bottleneck != "host":
        return ""
    return f"{_bucket(profile, HOST_DEVICE)}\n"


def _bucket(profile: LinkProfile, device: str) -> str:
    """A second, fast bucket holds one packet and a half: what is larger, tbf cuts into packets."""
    bits = int(profile.bits_per_second or 0)
    return (
        f"qdisc add dev {device} root tbf rate {bits}bit burst {profile.burst} "
        f"limit {profile.queue_size} peakrate {PEAK_RATE} mtu {profile.frame_size * 3 // 2}"
    )


def host_links(profile: LinkProfile, index: int, count: int) -> str:
    """For `ip -batch` in a host. Neighbours are fixed, so that no lost ARP costs a second."""
    lines = [
        f"link set {HOST_DEVICE} address {hardware_address(index)}",
        f"address add {address(index)}/24 dev {HOST_DEVICE}",
        f"link set {HOST_DEVICE} up",
        f"route add 224.0.0.0/4 dev {HOST_DEVICE}",
    ]
    lines += [
        f"neighbour replace {address(peer)} lladdr {hardware_address(peer)} "
        f"dev {HOST_DEVICE} nud permanent"
        for peer in range(count)
        if peer != index
    ]
    return "\n".join(lines) + "\n"


def offloads(profile: LinkProfile, index: int) -> dict[str, list[str]]:
    """Arguments of `ethtool -K`, in host `index` and in the switch; {}: as they are."""
    if profile.is_plain:
        return {}
    is_cut_later = has_uplink_device(profile) and not profile.reorder
    state = "on" if is_cut_later else "off"
    host = [HOST_DEVICE, "tso", state, "tx-udp-segmentation", state, "gro", "on"]
    # veth merges nothing on receive while its other end could send super-packets.
    return {"host": host, "switch": [port(index), "tso", "off", "tx-udp-segmentation", "off"]}


def rules(profile: LinkProfile, count: int) -> str:
    """For `nft -f` in the switch."""
    lines = ["table netdev entry {"]
    for index in range(count):
        stations = [port(index)]
        stations += [relay_device(index)] if profile.needs_relay else []
        stations += [uplink(index)] if has_uplink_device(profile) else []
        for here, there in itertools.pairwise(stations):
            hook = f'type filter hook ingress device "{here}" priority 0;'
            lines += [f"chain from_{here} {{", hook, f'fwd to "{there}"', "}"]
    return "\n".join([*lines, "}", *_bridge_rules(profile, count)]) + "\n"


def _bridge_rules(profile: LinkProfile, count: int) -> list[str]:
    """Behind the uplinks' queues: lost packets have used the link."""
    steps = round(profile.loss * LOSS_STEPS)
    lines = [
        f"counter {kind.format(index)} {{ }}" for index in range(count) for kind in (OFFERED, LOST)
    ]
    statements: list[str] = []
    for index in range(count):
        leaving = f'oifname "{port(index)}"'
        if profile.needs_relay:  # a flooded packet does not come back to its sender
            statements += [f'iifname "{relay_device(index)}" {leaving} drop']
        if steps:
            drop = f"numgen random mod {LOSS_STEPS} < {steps}"
            statements += [f'{leaving} counter name "{OFFERED.format(index)}"']
            statements += [f'{leaving} {drop} counter name "{LOST.format(index)}" drop']
    if not statements:
        return []
    chain = ["chain loss {", "type filter hook forward priority 0;", *statements, "}"]
    return ["table bridge loss {", *lines, *chain, "}"]
