"""What a user is shown of the cluster: a value, and its text. Used by `Cluster.info`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from comfy_cluster.cluster.state import InstanceState
from comfy_cluster.config import ImagePrecision, RegistrationMode, Role

ROUNDING_TEXT = (
    "COMFY_CLUSTER_IMAGE_PRECISION=uint8: images and masks are rounded to 8 bits on their way, so"
    " pixels are not exact"
)


@dataclass(frozen=True, slots=True)
class PeerSummary:
    """One other instance, as this one sees it."""

    instance_index: int
    role: Role
    address: str
    """`host:port`, or `address unknown`."""
    is_connected: bool
    rtt: float | None
    """Round trip in seconds; None: not measured."""
    bytes_sent: int
    bytes_received: int
    """Packets, and payloads that went through shared memory."""
    chunks_retransmitted: int
    shares_memory: bool = False
    """Large payloads go through shared memory: it is on this machine."""

    def text(self) -> str:
        """One line for people."""
        connection = "not connected"
        if self.is_connected:
            connection = f"connected, {'shared memory' if self.shares_memory else 'UDP'}"
        rtt = "-" if self.rtt is None else f"{self.rtt * 1000:.2f} ms"
        return (
            f"Instance {self.instance_index} ({self.role}): {self.address}, {connection}, "
            f"RTT {rtt}, sent {_size_text(self.bytes_sent)}, "
            f"received {_size_text(self.bytes_received)}, "
            f"resent {self.chunks_retransmitted} chunks"
        )


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """This instance and what it knows of the others, at one moment."""

    instance_index: int
    instance_count: int
    min_instances: int
    connected_count: int
    role: Role
    state: InstanceState
    registration_mode: RegistrationMode
    cluster_id: str
    engine: str
    """`compiled`, `pure Python`, or `none` for a cluster of one."""
    peers: tuple[PeerSummary, ...] = ()
    stats: Mapping[str, int] = field(default_factory=dict)
    """Counters by name; docs/protocol.md defines them."""
    image_precision: ImagePrecision = ImagePrecision.EXACT

    def text(self) -> str:
        """Several lines for people; `Connected: n/m instances` is among them."""
        lines = [
            f"Instance {self.instance_index} of {self.instance_count} ({self.role}), "
            f"{self.state.value}",
            f"Connected: {self.connected_count}/{self.instance_count} instances"
            f" (work starts with {self.min_instances})",
            f"Cluster {self.cluster_id}, registration {self.registration_mode}, "
            f"engine {self.engine}",
            *([ROUNDING_TEXT] if self.image_precision is ImagePrecision.UINT8 else []),
            *(peer.text() for peer in self.peers),
        ]
        counted = {name: count for name, count in sorted(self.stats.items()) if count}
        if counted:
            lines.append(", ".join(f"{name} {count}" for name, count in counted.items()))
        return "\n".join(lines)


def _size_text(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"
