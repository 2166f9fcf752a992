"""What goes over a link: records of a fixed size each, one a packet of the Unix socket.

Frozen values with `pack`; `parse` raises RemoteProtocolError for anything else. Layouts are in
docs/protocol.md. Descriptors travel beside a record and are not known here.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import ClassVar

from comfy_cluster.errors import RemoteProtocolError
from comfy_cluster.transport.shared_memory.proof import TAG_SIZE

LARGEST_RECORD = 64  # bytes; a reader asks for one more, and so notices what is too long


class Fate(IntEnum):
    """What became of a receiver's mapping when its last tensor was gone."""

    UNMAPPED = 0
    KEPT = 1
    """Still mapped, for the segment's next payload: it need not bring its descriptor."""
    STILL_SEEN = 2
    """A child process may see it: the segment must not be written to again."""


@dataclass(frozen=True, slots=True)
class Connect:
    """The first record of the side that connects."""

    KIND: ClassVar[int] = 1
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(f">BHQ{TAG_SIZE}s")

    instance_index: int
    boot_id: int
    tag: bytes


@dataclass(frozen=True, slots=True)
class Accept:
    """The listener's answer: from now on the link is there."""

    KIND: ClassVar[int] = 2
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(f">B{TAG_SIZE}s")

    tag: bytes


@dataclass(frozen=True, slots=True)
class Filled:
    """A buffer's payload is the first `size` bytes of a segment."""

    KIND: ClassVar[int] = 3
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(">BQQQQ")

    buffer_id: int
    segment_id: int
    size: int
    capacity: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A buffer that was accepted will not come through shared memory."""

    KIND: ClassVar[int] = 4
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(">BQ")

    buffer_id: int


@dataclass(frozen=True, slots=True)
class Released:
    """The receiver sees one payload of the segment no more."""

    KIND: ClassVar[int] = 5
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(">BQB")

    segment_id: int
    fate: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """The sender has given the segment up: a kept mapping of it is of no use."""

    KIND: ClassVar[int] = 6
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(">BQ")

    segment_id: int


Record = Connect | Accept | Filled | GivenUp | Released | Dropped
_KINDS: dict[int, type[Record]] = {
    kind.KIND: kind for kind in (Connect, Accept, Filled, GivenUp, Released, Dropped)
}


def pack(record: Record) -> bytes:
    return record.LAYOUT.pack(record.KIND, *astuple(record))


def parse(data: bytes) -> Record:
    """Raises RemoteProtocolError."""
    kind = _KINDS.get(data[0]) if data else None
    if kind is None or len(data) != kind.LAYOUT.size:
        raise RemoteProtocolError(f"no record: {len(data)} bytes, {data[:8].hex()}")
    return kind(*kind.LAYOUT.unpack(data)[1:])
