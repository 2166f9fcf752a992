"""What the protocol core needs to know of the instance that it runs in."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from comfy_cluster import config as cluster_config
from comfy_cluster.errors import ConfigError
from comfy_cluster.fastpath import MAX_PACKET_SIZE, MAX_PEERS, MIN_PACKET_SIZE
from comfy_cluster.wire import InstanceRole

LARGEST_PROBE = 8_972  # bytes of UDP payload: 9,000, a jumbo frame, less the IPv4 and UDP headers


@dataclass(frozen=True, slots=True)
class ProtocolSettings:
    """Settings of one `Endpoint`. Times in seconds, sizes in bytes."""

    instance_index: int
    instance_count: int
    boot_id: int
    """u64, not 0, drawn anew by every run of the instance."""
    cluster_id: str = "default"
    role: InstanceRole | None = None
    """None: the leader if this is instance 0."""
    heartbeat_interval: float = 0.5
    instance_timeout: float = 3.0
    """A peer that was silent for so long is lost."""
    ack_timeout: float = 5.0
    """Longest wait before a message is sent again; see `message_timeout`."""
    max_retries: int = 3
    memory_budget: int = 1 << 30
    """Payload in transfer at once: one half of it for incoming, one for outgoing buffers, so that
    two instances that send to each other never wait for each other's memory."""
    engine_name: str = ""
    software_version: str = ""
    codecs: tuple[str, ...] = ()
    """What the layers above can decode; peers are told."""
    is_observer: bool = False
    """It only looks: peers answer it, and count it as no member. They are told."""
    packet_size: int = MIN_PACKET_SIZE
    """First packet size to a peer on another machine; larger ones are probed."""
    largest_probe: int = LARGEST_PROBE
    """Largest packet size that paths are probed for."""
    loopback_packet_size: int = 8_952
    """Largest packet to a peer on this machine, reached over a loopback address."""
    receivable_packet_size: int = MAX_PACKET_SIZE
    """Largest packet that the socket side of this instance can take; peers are told."""

    def __post_init__(self) -> None:
        if not 0 <= self.instance_index < self.instance_count <= MAX_PEERS:
            raise ConfigError(
                f"instance {self.instance_index} of {self.instance_count}: expected an index below"
                f" the count, and at most {MAX_PEERS} instances"
            )
        for name in ("heartbeat_interval", "instance_timeout", "ack_timeout", "memory_budget"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0")

    @classmethod
    def from_config(
        cls,
        config: cluster_config.ClusterConfig,
        *,
        boot_id: int,
        engine_name: str,
        version: str,
        is_observer: bool = False,
    ) -> ProtocolSettings:
        return cls(
            instance_index=config.instance_index,
            instance_count=config.instance_count,
            boot_id=boot_id,
            cluster_id=config.cluster_id,
            role=InstanceRole[config.role.name],
            heartbeat_interval=config.heartbeat_interval,
            instance_timeout=config.instance_timeout,
            ack_timeout=config.ack_timeout,
            max_retries=config.max_retries,
            memory_budget=config.memory_budget,
            engine_name=engine_name,
            software_version=version,
            is_observer=is_observer,
        )

    @property
    def message_timeout(self) -> float:
        """Seconds after which a message that nobody acknowledged has failed."""
        return (1 + self.max_retries) * self.ack_timeout

    @property
    def own_role(self) -> InstanceRole:
        if self.role is not None:
            return self.role
        return InstanceRole.LEADER if self.instance_index == 0 else InstanceRole.FOLLOWER

    def probed_size_to(self, receivable: int) -> int:
        """Bytes of the largest packet to probe for, to a peer that can receive `receivable`."""
        return min(self.largest_probe, receivable)

    def packet_size_to(self, address: tuple[str, int], receivable: int) -> int:
        """Bytes of the largest packet to a peer there that says it can receive `receivable`."""
        wanted = self.loopback_packet_size if _is_loopback(address[0]) else self.packet_size
        return max(MIN_PACKET_SIZE, min(wanted, receivable))


def _is_loopback(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a name of a simulated network
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
