"""What a user is shown of the cluster: a value, and its text. Used by `Cluster.info`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from comfy_cluster import __version__
from comfy_cluster.cluster.state import InstanceState
from comfy_cluster.config import ClusterConfig, ImagePrecision, RegistrationMode, Role, role_of
from comfy_cluster.discovery.base import address_text
from comfy_cluster.transport.peer_info import PeerInfo

ROUNDING_TEXT = (
    "COMFY_CLUSTER_IMAGE_PRECISION=uint8: images and masks are rounded to 8 bits on their way, so"
    " pixels are not exact"
)

OBSERVED_TEXT = "only `comfy-cluster doctor` runs there now"

STATUS_PATH = "/cluster/status"
"""Where a ComfyUI tells its `ClusterInfo` as JSON."""


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
    packet_size: int = 0
    """Bytes of UDP payload that the path is known to carry; 0 while it is not connected."""
    software_version: str = ""
    is_suspect: bool = False
    """Connected, and silent for half of the time after which it is lost."""
    trouble: str = ""
    """Why it is not connected, for people; empty where that is not known."""

    @classmethod
    def of(cls, peer: PeerInfo, *, trouble: str, patience: float) -> PeerSummary:
        """`patience`: seconds of silence that say nothing yet."""
        return cls(
            instance_index=peer.index,
            role=role_of(peer.index),
            address="address unknown" if peer.address is None else address_text(peer.address),
            is_connected=peer.is_connected,
            rtt=peer.rtt,
            bytes_sent=peer.bytes_sent + peer.shared_bytes_sent,
            bytes_received=peer.bytes_received + peer.shared_bytes_received,
            chunks_retransmitted=peer.chunks_retransmitted,
            shares_memory=peer.shares_memory,
            packet_size=peer.packet_size,
            software_version=peer.software_version,
            is_suspect=peer.is_connected and peer.silent_for > patience,
            trouble=OBSERVED_TEXT if peer.is_observer else trouble,
        )

    @property
    def connection_text(self) -> str:
        """How it is reached, or why it is not."""
        if not self.is_connected:
            return "not connected" + (f" ({self.trouble})" if self.trouble else "")
        way = "shared memory" if self.shares_memory else "UDP"
        return f"{'silent' if self.is_suspect else 'connected'}, {way}"

    def text(self) -> str:
        """One line for people."""
        rtt = "-" if self.rtt is None else f"{self.rtt * 1000:.2f} ms"
        return (
            f"Instance {self.instance_index} ({self.role}): {self.address}, "
            f"{self.connection_text}, "
            f"RTT {rtt}, sent {size_text(self.bytes_sent)}, "
            f"received {size_text(self.bytes_received)}, "
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
    software_version: str = __version__
    failure: str = ""
    """Why this instance is in ERROR, for people."""

    @classmethod
    def of_one(cls) -> ClusterInfo:
        """Of a cluster of one: there is nothing to find out."""
        config = ClusterConfig()
        return cls(
            instance_index=config.instance_index,
            instance_count=config.instance_count,
            min_instances=config.min_instances,
            connected_count=1,
            role=config.role,
            state=InstanceState.IDLE,
            registration_mode=config.registration_mode,
            cluster_id=config.cluster_id,
            engine="none",
        )

    def to_json(self) -> str:
        """All of it, for programs: field names as here, times in seconds, sizes in bytes."""
        return json.dumps(dataclasses.asdict(self), default=lambda value: value.value)

    @classmethod
    def parse(cls, text: str) -> ClusterInfo:
        """What `to_json` gave. ValueError: it is something else."""
        try:
            values = json.loads(text)
            values["peers"] = tuple(
                PeerSummary(**{**each, "role": Role(each["role"])}) for each in values["peers"]
            )
            for name, kind in _ENUMS.items():
                values[name] = kind(values[name])
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no status of a cluster: {error!r}") from None

    def text(self) -> str:
        """Several lines for people; `Connected: n/m instances` is among them."""
        lines = [
            f"Instance {self.instance_index} of {self.instance_count} ({self.role}), "
            f"{self.state.value}",
            f"Connected: {self.connected_count}/{self.instance_count} instances"
            f" (work starts with {self.min_instances})",
            f"Cluster {self.cluster_id}, registration {self.registration_mode}, "
            f"engine {self.engine}",
            *([self.failure] if self.failure else []),
            *([ROUNDING_TEXT] if self.image_precision is ImagePrecision.UINT8 else []),
            *(peer.text() for peer in self.peers),
        ]
        counted = {name: count for name, count in sorted(self.stats.items()) if count}
        if counted:
            lines.append(", ".join(f"{name} {count}" for name, count in counted.items()))
        return "\n".join(lines)


_ENUMS: Mapping[str, type[Enum]] = {
    "role": Role,
    "state": InstanceState,
    "registration_mode": RegistrationMode,
    "image_precision": ImagePrecision,
}


def size_text(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"
