"""Announced buffers that wait for memory, and the order in which they get it.

How it works: each peer has a lane, and at most `LARGEST_OPEN` of its buffers are received at once.
Claimed buffers come first, in the order of their announcement; the first one that does not fit
stops those behind it, so that a large one is not overtaken forever. Then the unclaimed ones in the
same way; an unclaimed buffer that is larger than their share of the budget waits to be claimed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from comfy_cluster.protocol.budget import IncomingBudget
from comfy_cluster.protocol.incoming_buffer import IncomingBuffer

LARGEST_OPEN = 64  # buffers received from one peer at once; more would all end late
LARGEST_WAITING = 4_096  # announcements of one peer that wait; the next ones are refused


@dataclass(slots=True)
class _Lane:
    returning: dict[int, IncomingBuffer] = field(default_factory=dict)
    claimed: dict[int, IncomingBuffer] = field(default_factory=dict)
    unclaimed: dict[int, IncomingBuffer] = field(default_factory=dict)
    too_large: dict[int, IncomingBuffer] = field(default_factory=dict)
    open_count: int = 0

    def __len__(self) -> int:
        return len(self.returning) + len(self.claimed) + len(self.unclaimed) + len(self.too_large)


class IncomingQueue:
    def __init__(self, budget: IncomingBudget) -> None:
        self._budget = budget
        self._lanes: dict[int, _Lane] = {}

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    @property
    def has_open(self) -> bool:
        """Whether a buffer that was taken from here is being received."""
        return any(lane.open_count for lane in self._lanes.values())

    def is_full(self, peer: int) -> bool:
        lane = self._lanes.get(peer)
        return lane is not None and len(lane) >= LARGEST_WAITING

    def add(self, buffer: IncomingBuffer) -> None:
        lane = self._lanes.setdefault(buffer.peer, _Lane())
        self._part(lane, buffer)[buffer.buffer_id] = buffer

    def remove(self, buffer: IncomingBuffer) -> None:
        lane = self._lanes[buffer.peer]
        del self._part(lane, buffer)[buffer.buffer_id]
        self._drop_empty(buffer.peer)

    def set_claimed(self, buffer: IncomingBuffer, is_claimed: bool) -> None:
        self.remove(buffer)
        buffer.is_claimed = is_claimed
        self.add(buffer)

    def pop_next(self) -> IncomingBuffer | None:
        """Take the buffer that may have its memory now. `on_closed` gives its place back."""
        buffer = self._first_of("returning")
        if buffer is not None and self._budget.has_room_to_return(buffer.size):
            return self._open(buffer)  # what took its memory meanwhile may be waiting for it
        buffer = self._first_of("claimed")
        if buffer is None:
            buffer = self._first_of("unclaimed")
        if buffer is None or not self._budget.has_room(buffer.size, is_claimed=buffer.is_claimed):
            return None
        return self._open(buffer)

    def _open(self, buffer: IncomingBuffer) -> IncomingBuffer:
        self._lanes[buffer.peer].open_count += 1
        self.remove(buffer)
        return buffer

    def on_closed(self, peer: int) -> None:
        """A buffer of the peer is received no more."""
        self._lanes[peer].open_count -= 1
        self._drop_empty(peer)

    def _first_of(self, part: str) -> IncomingBuffer | None:
        """The buffer that was announced first, of peers that may receive one more."""
        firsts = self._firsts(part)
        return min(firsts, key=lambda buffer: buffer.order, default=None)

    def _firsts(self, part: str) -> Iterator[IncomingBuffer]:
        for lane in self._lanes.values():
            buffers: dict[int, IncomingBuffer] = getattr(lane, part)
            if buffers and lane.open_count < LARGEST_OPEN:
                yield next(iter(buffers.values()))

    def _part(self, lane: _Lane, buffer: IncomingBuffer) -> dict[int, IncomingBuffer]:
        if buffer.is_claimed:
            return lane.returning if buffer.is_returning else lane.claimed
        if buffer.size > self._budget.unclaimed_limit:
            return lane.too_large
        return lane.unclaimed

    def _drop_empty(self, peer: int) -> None:
        lane = self._lanes[peer]
        if not lane and not lane.open_count:
            del self._lanes[peer]
