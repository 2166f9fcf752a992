"""One buffer that this instance sends, as a value and its state; `outgoing_buffers.py` moves it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from comfy_cluster.errors import ClusterError, LocalProtocolError
from comfy_cluster.wire import DIGEST_SIZE, LARGEST_BUFFER, MessageType, TransferKey

if TYPE_CHECKING:
    from typing_extensions import Buffer


class PayloadParts(Protocol):
    """The bytes of one buffer: `prefix` and then `body`. `codec.EncodedPayload` is one."""

    @property
    def prefix(self) -> bytes: ...

    @property
    def body(self) -> Buffer: ...


@dataclass(frozen=True, slots=True, eq=False)
class OutgoingPayload:
    """The bytes of one buffer: `prefix` and then `body`, whose memory is read until the end."""

    prefix: bytes
    body: Buffer
    digest: bytes
    """xxh3_128 of both, 16 bytes, big-endian."""

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_SIZE:
            raise LocalProtocolError(f"a digest has {DIGEST_SIZE} bytes, not {len(self.digest)}")
        if self.size > LARGEST_BUFFER:
            raise LocalProtocolError(f"a buffer of {self.size} bytes is above {LARGEST_BUFFER}")

    @property
    def size(self) -> int:
        return len(self.prefix) + memoryview(self.body).nbytes

    def to_bytes(self) -> bytes:
        return self.prefix + memoryview(self.body).cast("B")


class TransferListener(Protocol):
    """Whoever sends a buffer learns how it ended."""

    def on_transfer_done(self, transfer_id: int, now: float) -> None: ...

    def on_transfer_failed(self, transfer_id: int, error: ClusterError, now: float) -> None: ...


class OutgoingState(Enum):
    WAITING = "waits for the connection"
    ANNOUNCED = "waits for the receiver's memory"
    ACCEPTED = "waits for the outgoing budget"
    SENDING = "given to the engine; waits for the receiver's confirmation"


@dataclass(slots=True, eq=False)
class OutgoingBuffer:
    transfer_id: int
    """The first `buffer_id`; a second attempt has another."""
    buffer_id: int
    peer: int
    key: TransferKey
    message_type: MessageType
    payload: OutgoingPayload
    size: int
    listener: TransferListener
    state: OutgoingState = OutgoingState.WAITING
    attempt: int = 1
    chunk_size: int = 0
    announcement_id: int = 0
