"""What the protocol core needs of the packet engine: both engines offer it, and so may a fake.

The contract of each method is in `_fastpath.pyi`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

Address = tuple[str, int]


class EnginePort(Protocol):
    def allow_address(self, address: Address) -> None: ...

    def disallow_address(self, address: Address) -> None: ...

    def connect_peer(
        self,
        peer: int,
        address: Address,
        *,
        local_session: int,
        remote_session: int,
        packet_size: int,
        largest_packet_size: int,
        now: float,
    ) -> None: ...

    def disconnect_peer(self, peer: int) -> None: ...

    def send_hello(self, address: Address, payload: bytes) -> None: ...

    def send_message(self, peer: int, payload: bytes) -> bool: ...

    def open_outgoing(
        self, peer: int, buffer_id: int, prefix: bytes, body: Buffer, *, chunk_size: int
    ) -> None: ...

    def open_relay(self, peer: int, buffer_id: int, source_id: int, *, chunk_size: int) -> None: ...

    def close_outgoing(self, buffer_id: int) -> None: ...

    def open_incoming(
        self, peer: int, buffer_id: int, destination: Buffer, *, size: int, chunk_size: int
    ) -> None: ...

    def close_incoming(self, buffer_id: int) -> None: ...

    def take_events(self) -> list[Any]: ...

    def peer_stats(self, peer: int) -> dict[str, float | int]: ...
