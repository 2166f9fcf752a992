"""One instance of the demo: its settings as variables, its cluster, its traffic.

The same for the leader, which is the command's own process, and for the followers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from comfy_cluster.cluster import Cluster
from comfy_cluster.config import role_of
from comfy_cluster.settings_parsing import PREFIX
from comfy_cluster.transport.sockets import open_udp_socket

LOOPBACK = "127.0.0.1"
# Seconds. Loading torch takes 3 s of a core, and all instances may share one with other programs.
START_TIMEOUT = 60.0
START_TIMEOUT_PER_INSTANCE = 5.0

# What the demo decides itself. All other settings of the user hold in the demo too.
_OWN_VARIABLES = (
    *("INSTANCE_COUNT", "INSTANCE_INDEX", "ROLE", "REGISTRATION_MODE"),
    *("STUN_SERVER", "CLUSTER_ID", "KEY", "BROADCAST_PORT", "UDP_BROADCAST", "UDP_HOSTNAMES"),
    *("LISTEN_ADDRESS", "INSTANCE_ADDRESS", "DIRECT_LISTEN_PORT", "COMFY_PORT", "SINGLE_HOST"),
    *("HOT_RELOAD", "MIN_INSTANCES"),
)


def free_ports(count: int) -> list[int]:
    """UDP ports of the loopback address that nobody uses at this moment, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(open_udp_socket(LOOPBACK, 0)) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


def instance_environ(
    environ: Mapping[str, str], index: int, *, ports: Sequence[int], cluster_id: str
) -> dict[str, str]:
    """`environ` with the settings of instance `index` of a static cluster on these ports."""
    owned = {PREFIX + name for name in _OWN_VARIABLES}
    settings = {
        "INSTANCE_COUNT": str(len(ports)),
        "INSTANCE_INDEX": str(index),
        "ROLE": str(role_of(index)),
        "REGISTRATION_MODE": "static",
        "CLUSTER_ID": cluster_id,
        "LISTEN_ADDRESS": LOOPBACK,
        "UDP_HOSTNAMES": ",".join(f"{LOOPBACK}:{port}" for port in ports),
        "SINGLE_HOST": "true",
    }
    kept = {name: value for name, value in environ.items() if name not in owned}
    return kept | {PREFIX + name: value for name, value in settings.items()}


def start_timeout(instance_count: int) -> float:
    """Seconds until all instances must be connected."""
    return START_TIMEOUT + START_TIMEOUT_PER_INSTANCE * instance_count


@dataclass(frozen=True, slots=True)
class Traffic:
    """What an instance sent and received so far, to and from all of its peers."""

    bytes_sent: int = 0
    bytes_received: int = 0
    chunks_retransmitted: int = 0

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(
            self.bytes_sent - earlier.bytes_sent,
            self.bytes_received - earlier.bytes_received,
            self.chunks_retransmitted - earlier.chunks_retransmitted,
        )


def traffic_of(cluster: Cluster) -> Traffic:
    """What this instance sent and received so far; zeros for a cluster of one."""
    peers = cluster.info().peers
    return Traffic(
        sum(peer.bytes_sent for peer in peers),
        sum(peer.bytes_received for peer in peers),
        sum(peer.chunks_retransmitted for peer in peers),
    )
