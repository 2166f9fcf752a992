"""One buffer that this instance sends, as a value and its state; `outgoing_buffers.py` moves it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from comfy_cluster.errors import ClusterError, LocalProtocolError
from comfy_cluster.protocol.engine_port import EnginePort
from comfy_cluster.wire import DIGEST_SIZE, LARGEST_BUFFER, MessageType, Route, TransferKey

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
    digest: bytes | None
    """xxh3_128 of both, 16 bytes, big-endian. None: not made yet, because nobody may need it."""

    def __post_init__(self) -> None:
        if self.digest is not None and len(self.digest) != DIGEST_SIZE:
            raise LocalProtocolError(f"a digest has {DIGEST_SIZE} bytes, not {len(self.digest)}")
        if self.size > LARGEST_BUFFER:
            raise LocalProtocolError(f"a buffer of {self.size} bytes is above {LARGEST_BUFFER}")

    @property
    def size(self) -> int:
        return len(self.prefix) + memoryview(self.body).nbytes

    @property
    def budget_size(self) -> int:
        return self.size

    def inline_payload(self, largest: int) -> bytes | None:
        return self.prefix + memoryview(self.body).cast("B") if self.size <= largest else None

    def open(self, engine: EnginePort, peer: int, buffer_id: int, chunk_size: int) -> None:
        engine.open_outgoing(peer, buffer_id, self.prefix, self.body, chunk_size=chunk_size)


class Sendable(Protocol):
    """What an outgoing buffer brings to its peer: memory of this instance, or what it receives."""

    @property
    def size(self) -> int: ...

    @property
    def digest(self) -> bytes | None: ...

    @property
    def budget_size(self) -> int:
        """Bytes of the outgoing budget that it takes while it is sent."""

    def inline_payload(self, largest: int) -> bytes | None:
        """All of it, if it may travel inside of an announcement and is not larger than that."""

    def open(self, engine: EnginePort, peer: int, buffer_id: int, chunk_size: int) -> None:
        """Have the engine send it."""


class TransferListener(Protocol):
    """Whoever sends a buffer learns how it ended."""

    def on_transfer_done(self, transfer_id: int, now: float) -> None: ...

    def on_transfer_failed(self, transfer_id: int, error: ClusterError, now: float) -> None: ...


class OutgoingState(Enum):
    WAITING = "waits for the connection, or for its digest"
    ANNOUNCED = "waits for the receiver's memory"
    ACCEPTED = "waits for the outgoing budget"
    SENDING = "on its way; waits for the receiver's confirmation"


@dataclass(slots=True, eq=False)
class OutgoingBuffer:
    transfer_id: int
    """The first `buffer_id`; a second attempt has another."""
    buffer_id: int
    peer: int
    key: TransferKey
    message_type: MessageType
    payload: Sendable
    listener: TransferListener
    state: OutgoingState = OutgoingState.WAITING
    route: Route | None = None
    """It is one hop of a payload's way over several instances: others see to what fails."""
    attempt: int = 1
    chunk_size: int = 0
    announcement_id: int = 0
    is_shared: bool = False
    """It was announced for shared memory."""
    may_share: bool = True
    """False: the receiver could not have it through shared memory."""

    @property
    def size(self) -> int:
        return self.payload.size
