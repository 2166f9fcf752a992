"""Commands that make a lab's devices, queues and rules: text for `ip -batch`, `tc -batch`, `nft`.

How it works. Links without a delay are made by the kernel, in a namespace that is the switch:

    host 0: eth0 ---- port0 (> up0) > bridge0 > port1 ---- eth0 :host 1

What a host sends enters at its port. A rule hands it to `up0`, an ifb device whose token bucket
(tbf) is the host's uplink; with the bottleneck `host` the bucket is at eth0 instead, and `up0` is
not there. The bridge forwards by fixed addresses, and drops the lost ones. With more than two hosts
a second bucket, at the receiver's port, is its downlink; with two it would change nothing, and it
costs a timer a packet.

Queues and losses must count single packets: the bucket cuts super-packets (GSO) before it queues
them. Where there is no bucket in the switch, eth0 does without segmentation offload, and the host's
kernel cuts them. Nothing merges packets again but the receiver's eth0 (GRO), behind everything.

Links with a delay are made by the relay (`relay.pyx`), all of them: their eth0 is a TAP device that
the relay's process has made, and there is no switch.
"""

from __future__ import annotations

from benchmarks.netlab.profile import LinkProfile

BRIDGE = "bridge0"
HOST_DEVICE = "eth0"
LOSS_STEPS = 1_000_000  # loss is a multiple of 1 / LOSS_STEPS
TAP_QUEUE_FRAMES = 20_000  # room for what arrives while the relay is not scheduled
PORT_QUEUE_PACKETS = 20_000
# How fast the second bucket fills: no limit beside any rate. In the ticks of tc, 64 ns, so that the
# bucket's size, which tc sends as a time, is exact; and a little more than a packet.
BUCKET_NS = 4 * 64
BUCKET_MARGIN = 8  # bytes
WHOLE = ("tso", "on", "tx-udp-segmentation", "on")
CUT = ("tso", "off", "tx-udp-segmentation", "off")
LOST = "lost{}"  # counters, by host
OFFERED = "offered{}"
SUPER = "super"


def address(index: int) -> str:
    return f"10.77.0.{index + 1}"


def hardware_address(index: int) -> str:
    return f"02:cc:00:00:00:{index + 1:02x}"


def port(index: int) -> str:
    return f"port{index}"


def uplink(index: int) -> str:
    return f"up{index}"


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
    """A second, fast bucket holds one packet: what is larger, tbf cuts before it queues it."""
    bits = int(profile.bits_per_second or 0)
    size = profile.frame_size + BUCKET_MARGIN
    peak = size * 8 * 10**9 // BUCKET_NS
    return (
        f"qdisc add dev {device} root tbf rate {bits}bit burst {profile.burst} "
        f"limit {profile.queue_size} peakrate {peak}bit mtu {size + 1}"
    )


def host_links(profile: LinkProfile, index: int, count: int) -> str:
    """For `ip -batch` in a host. Neighbours are fixed, so that no lost ARP costs a second."""
    queue = f" txqueuelen {TAP_QUEUE_FRAMES}" if profile.is_relayed else ""
    lines = [
        f"link set {HOST_DEVICE} address {hardware_address(index)} mtu {profile.mtu}{queue}",
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


def host_offloads(profile: LinkProfile) -> list[str]:
    """Arguments of `ethtool -K` in a host; []: as they are."""
    if profile.is_plain:
        return []
    return [HOST_DEVICE, *(WHOLE if has_uplink_device(profile) else CUT), "gro", "on"]


def switch_offloads(profile: LinkProfile, index: int) -> list[list[str]]:
    """Arguments of `ethtool -K` in the switch, for each call.

    The uplink cuts the super-packets that are smaller than a packet may be, which tbf lets pass;
    and veth merges nothing on receive while its other end could send super-packets.
    """
    if profile.is_plain:
        return []
    devices = [port(index), *([uplink(index)] if has_uplink_device(profile) else [])]
    return [[device, *CUT] for device in devices]


def rules(profile: LinkProfile, count: int) -> str:
    """For `nft -f` in the switch."""
    lines = ["table netdev entry {"]
    for index in range(count):
        if has_uplink_device(profile):
            hook = f'type filter hook ingress device "{port(index)}" priority 0;'
            lines += [f"chain from{index} {{", hook, f'fwd to "{uplink(index)}"', "}"]
    return "\n".join([*lines, "}", *_bridge_rules(profile, count)]) + "\n"


def _bridge_rules(profile: LinkProfile, count: int) -> list[str]:
    """Losses, behind the uplinks' queues: lost packets have used the link."""
    steps = round(profile.loss * LOSS_STEPS)
    if not steps:
        return []
    lines = [
        f"counter {kind.format(index)} {{ }}" for index in range(count) for kind in (OFFERED, LOST)
    ]
    lines += [f"counter {SUPER} {{ }}"]
    statements: list[str] = []
    for index in range(count):
        leaving = f'meta oif "{port(index)}"'
        drop = f"numgen random mod {LOSS_STEPS} < {steps}"
        statements += [f'{leaving} counter name "{OFFERED.format(index)}"']
        statements += [f'{leaving} meta length > {profile.mtu} counter name "{SUPER}"']
        statements += [f'{leaving} {drop} counter name "{LOST.format(index)}" drop']
    chain = ["chain loss {", "type filter hook forward priority 0;", *statements, "}"]
    return ["table bridge loss {", *lines, *chain, "}"]
