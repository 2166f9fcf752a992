"""What the protocol core needs of shared memory: another way for payloads, beside the engine.

The core chooses the way of each buffer; segments, descriptors and sockets are `transport/`'s, which
offers this port. An instance that has none uses `NoSharedMemory`. Control thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class PeerProof:
    """What two connected peers know of each other, and nobody else on their machine."""

    boot_id: int
    """The peer's."""
    local_session: int
    remote_session: int


@dataclass(frozen=True, slots=True)
class SharedArrived:
    """An incoming buffer is complete: the first `size` bytes of `memory`, the receiver's alone."""

    buffer_id: int
    memory: Buffer


@dataclass(frozen=True, slots=True)
class SharedFailed:
    """An incoming buffer will not come through shared memory."""

    buffer_id: int
    reason: str


SharedEvent = SharedArrived | SharedFailed


class SharedMemoryPort(Protocol):
    """A buffer id is open from `open_*` to `close_*`; closing one that is not open does nothing."""

    def connect_peer(self, peer: int, proof: PeerProof, now: float) -> None:
        """A connection to the peer was made: find out whether it shares memory."""

    def disconnect_peer(self, peer: int) -> None:
        """The connection is over, and all buffers of it are closed."""

    def is_shared_with(self, peer: int) -> bool:
        """Whether the peer has proved to be a process of the same machine and user."""

    def open_outgoing(self, peer: int, buffer_id: int, prefix: bytes, body: Buffer) -> None:
        """A payload may have to be sent: its memory does not change until it is closed."""

    def send(self, buffer_id: int) -> None:
        """The peer waits for the payload of an open buffer."""

    def close_outgoing(self, buffer_id: int) -> None:
        """The payload has arrived, or is not to be sent any more."""

    def open_incoming(self, peer: int, buffer_id: int, size: int) -> None:
        """One event of this buffer follows, unless it is closed before."""

    def close_incoming(self, buffer_id: int) -> None:
        """Nobody wants the payload."""

    def take_events(self) -> Sequence[SharedEvent]:
        """All that happened since the last call."""


class NoSharedMemory:
    """Every payload travels over UDP."""

    def connect_peer(self, peer: int, proof: PeerProof, now: float) -> None:
        pass

    def disconnect_peer(self, peer: int) -> None:
        pass

    def is_shared_with(self, peer: int) -> bool:
        return False

    def open_outgoing(self, peer: int, buffer_id: int, prefix: bytes, body: Buffer) -> None:
        raise RuntimeError("no peer shares memory with this instance")

    def send(self, buffer_id: int) -> None:
        raise RuntimeError("no peer shares memory with this instance")

    def close_outgoing(self, buffer_id: int) -> None:
        pass

    def open_incoming(self, peer: int, buffer_id: int, size: int) -> None:
        raise RuntimeError("no peer shares memory with this instance")

    def close_incoming(self, buffer_id: int) -> None:
        pass

    def take_events(self) -> Sequence[SharedEvent]:
        return ()
