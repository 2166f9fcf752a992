"""What can be said of one peer now: the protocol core's knowledge and the engine's numbers."""

from __future__ import annotations

from dataclasses import dataclass

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A snapshot. Numbers count from the present connection on, and are 0 without one."""

    index: int
    address: Address | None = None
    """None: not found out yet."""
    is_connected: bool = False
    boot_id: int = 0
    role: str = ""
    software_version: str = ""
    engine_name: str = ""
    rtt: float | None = None
    """Smoothed seconds; None: nothing measured yet."""
    packet_size: int = 0
    silent_for: float = 0.0
    """Seconds since anything was heard of it."""
    shares_memory: bool = False
    """Large payloads travel through shared memory, not over UDP."""
    shared_bytes_sent: int = 0
    """Bytes of payload through shared memory; the other numbers are UDP's."""
    shared_bytes_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    packets_received: int = 0
    packets_lost: int = 0
    chunks_sent: int = 0
    chunks_retransmitted: int = 0
    bytes_retransmitted: int = 0
    is_heard: bool = False
    """Its HELLOs arrive here. Without a connection: ours do not arrive there."""
    is_observer: bool = False
    """Only `comfy-cluster doctor` is there: reached both ways, and no member of the cluster."""
