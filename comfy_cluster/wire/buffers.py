"""What the two ends of a transfer tell each other: announcement, accept, done, failed, cancel."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from comfy_cluster.errors import LocalProtocolError
from comfy_cluster.wire import bounds, route, transfer_key
from comfy_cluster.wire import messages_pb2 as pb
from comfy_cluster.wire.route import Route
from comfy_cluster.wire.transfer_key import TransferKey

DIGEST_SIZE = 16  # xxh3_128
LARGEST_BUFFER = 1 << 40  # bytes; far above any tensor, far below what overflows a size
LARGEST_ATTEMPT = 2  # sent once, and once more when it arrived damaged
LONGEST_REASON = 512


class FailureCode(IntEnum):
    """Why a receiver gave a buffer up."""

    CORRUPT = 1
    TOO_MANY = 2
    NO_MEMORY = 3
    NOT_RELAYED = 4
    ROUTE_LOST = 5
    NO_SHARED_MEMORY = 20


@dataclass(frozen=True, slots=True)
class BufferAnnouncement:
    """A buffer that the sender holds ready, or (with `inline_payload`) brings along."""

    buffer_id: int
    size: int
    chunk_size: int
    """Bytes of payload in every chunk but the last; 0 when the payload is inline or shared."""
    digest: bytes
    """Empty when the payload is shared."""
    key: TransferKey
    inline_payload: bytes | None = None
    attempt: int = 1
    """Counts up when a payload is sent again because its digest did not match."""
    route: Route | None = None
    """Of a payload that goes over several instances; it is never inline."""
    is_shared: bool = False
    """It comes through shared memory."""

    def __post_init__(self) -> None:
        bounds.check_range("buffer_id", self.buffer_id, 1, bounds.LARGEST_U64)
        bounds.check_range("size of the buffer", self.size, 0, LARGEST_BUFFER)
        bounds.check_range("attempt", self.attempt, 1, LARGEST_ATTEMPT)
        if self.route is not None and self.inline_payload is not None:
            raise LocalProtocolError("a payload with a route is never inline")
        bounds.check_size("digest", self.digest, 0 if self.is_shared else DIGEST_SIZE)
        if self.is_shared:
            bounds.check_range("size of a shared payload", self.size, 1, LARGEST_BUFFER)
            bounds.check_range("chunk_size of a shared payload", self.chunk_size, 0, 0)
            if self.inline_payload is not None or self.route is not None:
                raise LocalProtocolError("a shared payload is neither inline nor on a route")
            return
        if self.inline_payload is not None:
            bounds.check_range("chunk_size of an inline payload", self.chunk_size, 0, 0)
            bounds.check_size("inline payload", self.inline_payload, self.size)
            return
        smallest = max(1, min(self.size, bounds.SMALLEST_CHUNK))  # a single chunk may be smaller
        bounds.check_range("chunk_size", self.chunk_size, smallest, bounds.LARGEST_CHUNK)

    @property
    def chunk_count(self) -> int:
        return -(-self.size // self.chunk_size) if self.chunk_size else 0

    def pack(self) -> bytes:
        message = pb.BufferAnnouncement(
            buffer_id=self.buffer_id,
            size=self.size,
            chunk_size=self.chunk_size,
            digest=self.digest,
            key=transfer_key.to_protobuf(self.key),
            attempt=self.attempt,
            shared_memory=self.is_shared,
        )
        if self.inline_payload is not None:
            message.inline_payload = self.inline_payload
        if self.route is not None:
            message.route.CopyFrom(route.to_protobuf(self.route))
        return message.SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> BufferAnnouncement:
        message = bounds.decode(pb.BufferAnnouncement, data)
        is_inline = message.HasField("inline_payload")
        has_route = message.HasField("route")
        with bounds.parsing_of("buffer announcement"):
            return cls(
                buffer_id=message.buffer_id,
                size=message.size,
                chunk_size=message.chunk_size,
                digest=message.digest,
                key=transfer_key.from_protobuf(message.key),
                inline_payload=message.inline_payload if is_inline else None,
                attempt=message.attempt,
                route=route.from_protobuf(message.route) if has_route else None,
                is_shared=message.shared_memory,
            )


@dataclass(frozen=True, slots=True)
class BufferAccept:
    """The receiver has the memory: send the chunks."""

    buffer_id: int

    def __post_init__(self) -> None:
        bounds.check_range("buffer_id", self.buffer_id, 1, bounds.LARGEST_U64)

    def pack(self) -> bytes:
        return pb.BufferAccept(buffer_id=self.buffer_id).SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> BufferAccept:
        message = bounds.decode(pb.BufferAccept, data)
        with bounds.parsing_of("BUFFER_ACCEPT"):
            return cls(message.buffer_id)


@dataclass(frozen=True, slots=True)
class BufferDone:
    """The receiver has all of it, and the digest matches."""

    buffer_id: int

    def __post_init__(self) -> None:
        bounds.check_range("buffer_id", self.buffer_id, 1, bounds.LARGEST_U64)

    def pack(self) -> bytes:
        return pb.BufferDone(buffer_id=self.buffer_id).SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> BufferDone:
        message = bounds.decode(pb.BufferDone, data)
        with bounds.parsing_of("BUFFER_DONE"):
            return cls(message.buffer_id)


@dataclass(frozen=True, slots=True)
class BufferFailed:
    """The receiver gave the buffer up; a `reason` that is too long is cut when packed."""

    buffer_id: int
    code: FailureCode
    reason: str = ""
    route: int = 0
    """Number of the route that it is about; 0: of none."""

    def __post_init__(self) -> None:
        bounds.check_range("buffer_id", self.buffer_id, 1, bounds.LARGEST_U64)
        bounds.check_range("route", self.route, 0, bounds.LARGEST_U32)

    def pack(self) -> bytes:
        return pb.BufferFailed(
            buffer_id=self.buffer_id,
            code=self.code.name,
            reason=bounds.shorten(self.reason, LONGEST_REASON),
            route=self.route,
        ).SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> BufferFailed:
        message = bounds.decode(pb.BufferFailed, data)
        with bounds.parsing_of("BUFFER_FAILED"):
            bounds.check_text("reason", message.reason, LONGEST_REASON)
            code = bounds.as_enum(FailureCode, message.code)
            return cls(message.buffer_id, code, message.reason, message.route)


@dataclass(frozen=True, slots=True)
class BufferCancel:
    """One side gave the buffer up; a `reason` that is too long is cut when packed."""

    buffer_id: int
    reason: str = ""
    key: TransferKey | None = None
    """From an origin of routes: whoever waits for it may not have heard of the payload yet."""

    def __post_init__(self) -> None:
        bounds.check_range("buffer_id", self.buffer_id, 1, bounds.LARGEST_U64)

    def pack(self) -> bytes:
        reason = bounds.shorten(self.reason, LONGEST_REASON)
        message = pb.BufferCancel(buffer_id=self.buffer_id, reason=reason)
        if self.key is not None:
            message.key.CopyFrom(transfer_key.to_protobuf(self.key))
        return message.SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> BufferCancel:
        message = bounds.decode(pb.BufferCancel, data)
        has_key = message.HasField("key")
        with bounds.parsing_of("BUFFER_CANCEL"):
            bounds.check_text("reason", message.reason, LONGEST_REASON)
            key = transfer_key.from_protobuf(message.key) if has_key else None
            return cls(message.buffer_id, message.reason, key)
