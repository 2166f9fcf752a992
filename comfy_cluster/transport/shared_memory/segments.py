"""The sender's segments: made, lent to receivers, used again, given up.

How it works. A segment is a memfd and this process's mapping of it. It is *filled* with one payload
at a time, and lent to each peer that gets it; a peer *borrows* it until it says that its mapping is
gone. Once nobody borrows it and no transfer needs it, it is *idle*, and the next payload of its
size class may have it: its pages are there, and first touch costs several times what a copy costs.
What was borrowed by a peer that is lost may be mapped there for ever, and is not used again. Giving
a segment up frees nothing that a receiver still maps. Control thread only.
"""

from __future__ import annotations

import errno
import itertools
import mmap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from comfy_cluster.transport.shared_memory import system_calls
from comfy_cluster.transport.shared_memory.forks import Descriptor
from comfy_cluster.transport.shared_memory.records import Fate
from comfy_cluster.transport.shared_memory.stats import SharedMemoryStats

IDLE_TIMEOUT = 60.0  # seconds that an idle segment waits for its next payload: a sampler's pause
IDLE_SHARE = 4  # idle segments take at most this part of the outgoing half of the memory budget
# Segments that exist at once: each holds a descriptor here, of 1,024 that a process usually may
# have. With more, the one lent for longest is given up: it lives on as its receivers' mappings.
LARGEST_COUNT = 128
SMALLEST_CAPACITY = 1 << 18  # bytes


@dataclass(slots=True, eq=False)
class Segment:
    segment_id: int
    capacity: int
    descriptor: Descriptor
    address: int
    touched_size: int = 0
    """Bytes from the start on whose pages are there: a payload before was as large."""
    is_in_use: bool = True
    """A payload is in it that may still have to be sent."""
    is_tainted: bool = False
    """Somebody may see what is in it for as long as he likes."""
    borrowers: Counter[int] = field(default_factory=Counter)
    """How many payloads in it each peer sees."""
    keepers: set[int] = field(default_factory=set)
    """Peers that keep a mapping of it which shows nobody anything now."""
    idle_since: float = 0.0

    def close(self) -> None:
        """A copy into it that is under way must have ended."""
        system_calls.unmap(self.address, self.capacity)
        self.descriptor.close()

    def view(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Its memory, valid until it is given up."""
        return np.asarray(_Memory(self.address, self.capacity))


class _Memory:
    """What numpy needs to make an array of an address."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


def capacity_for(size: int) -> int:
    """The size class: eighths between powers of two, so that an eighth at most is never touched."""
    size = max(size, SMALLEST_CAPACITY)
    step = max(mmap.PAGESIZE, 1 << (size.bit_length() - 4))
    return -(-size // step) * step


class SegmentPool:
    """`on_dropped(segment)`: it is given up; whoever keeps a mapping of it should let go."""

    def __init__(
        self,
        *,
        idle_limit: int,
        stats: SharedMemoryStats,
        on_dropped: Callable[[Segment], object],
    ) -> None:
        """`idle_limit`: bytes."""
        self._stats = stats
        self._idle_limit = idle_limit
        self._on_dropped = on_dropped
        self._ids = itertools.count(1)
        self._segments: dict[int, Segment] = {}
        self._idle: dict[int, list[Segment]] = {}  # by capacity, the one used last at the end
        self.idle_bytes = 0

    def __len__(self) -> int:
        return len(self._segments)

    def take(self, size: int) -> Segment:
        """A segment for a payload of `size` bytes. OSError: none can be had."""
        capacity = capacity_for(size)
        idle = self._idle.get(capacity)
        if idle:
            segment = idle.pop()
            if not idle:
                del self._idle[capacity]
            self.idle_bytes -= capacity
            segment.is_in_use = True
            self._stats.segments_reused += 1
            return segment
        self._make_place()
        segment = _new_segment(next(self._ids), capacity)
        self._segments[segment.segment_id] = segment
        self._stats.segments_made += 1
        self._stats.segments = len(self._segments)
        return segment

    def get(self, segment_id: int) -> Segment | None:
        """None: it was given up."""
        return self._segments.get(segment_id)

    def lend(self, segment: Segment, peer: int) -> bool:
        """One payload in it goes to the peer. False: the peer keeps a mapping of it already."""
        segment.borrowers[peer] += 1
        if peer in segment.keepers:
            segment.keepers.discard(peer)
            return False
        return True

    def on_released(self, segment: Segment, peer: int, fate: Fate, now: float) -> None:
        """A peer that borrowed it sees one payload less."""
        if segment.borrowers[peer] <= 0:
            return  # it never had it
        segment.borrowers[peer] -= 1
        if fate is Fate.KEPT:
            segment.keepers.add(peer)
        segment.is_tainted |= fate is Fate.STILL_SEEN
        self._rest(segment, now)

    def on_unused(self, segment: Segment, now: float) -> None:
        """No transfer needs what is in it any more."""
        segment.is_in_use = False
        self._rest(segment, now)

    def on_lost(self, peer: int, now: float) -> None:
        """The peer will not say any more what it sees."""
        for segment in list(self._segments.values()):
            segment.keepers.discard(peer)
            if segment.borrowers.pop(peer, 0) > 0:
                segment.is_tainted = True
                self._rest(segment, now)

    def _rest(self, segment: Segment, now: float) -> None:
        if segment.is_in_use or segment.borrowers.total() > 0:
            return
        if segment.is_tainted or segment.capacity > self._idle_limit:
            self.give_up(segment)
            return
        while self.idle_bytes + segment.capacity > self._idle_limit:
            self.give_up(self._longest_idle())
        segment.idle_since = now
        self._idle.setdefault(segment.capacity, []).append(segment)
        self.idle_bytes += segment.capacity

    def _longest_idle(self) -> Segment:
        return min((each[0] for each in self._idle.values()), key=lambda each: each.idle_since)

    def _make_place(self) -> None:
        """Keep to the number of segments. OSError: all are in use."""
        if len(self._segments) < LARGEST_COUNT:
            return
        if self._idle:
            self.give_up(self._longest_idle())
            return
        lent = next((each for each in self._segments.values() if not each.is_in_use), None)
        if lent is None:
            raise OSError(errno.EMFILE, f"{LARGEST_COUNT} segments are in use")
        self.give_up(lent)

    def next_timer(self) -> float | None:
        """When `trim` has something to do."""
        return self._longest_idle().idle_since + IDLE_TIMEOUT if self._idle else None

    def trim(self, now: float) -> None:
        """Give up what nobody used for long."""
        while self._idle and (oldest := self._longest_idle()).idle_since + IDLE_TIMEOUT <= now:
            self.give_up(oldest)

    def give_up(self, segment: Segment) -> None:
        """Its memory goes when no receiver maps it any more."""
        del self._segments[segment.segment_id]
        self._stats.segments = len(self._segments)
        idle = self._idle.get(segment.capacity, [])
        if segment in idle:
            idle.remove(segment)
            self.idle_bytes -= segment.capacity
            if not idle:
                del self._idle[segment.capacity]
        segment.close()
        self._on_dropped(segment)

    def close(self) -> None:
        for segment in list(self._segments.values()):
            self.give_up(segment)


def _new_segment(segment_id: int, capacity: int) -> Segment:
    """OSError."""
    descriptor = Descriptor(system_calls.create_segment(capacity))
    try:
        address = system_calls.map_writable(descriptor.fd, capacity)
    except OSError:
        descriptor.close()
        raise
    try:
        system_calls.seal(descriptor.fd)
    except OSError:
        system_calls.unmap(address, capacity)
        descriptor.close()
        raise
    return Segment(segment_id, capacity, descriptor, address)
