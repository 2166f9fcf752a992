"""Payloads that come through shared memory: mapped, handed on, and told of when they are unseen.

How it works. The protocol core opens a buffer when it accepts it; a record of the sender says in
which segment it lies. What a peer sends is checked before it is mapped, and what cannot be had or
was not asked for changes nothing but a counter. When the last tensor over a mapping is gone, a
worker looks whether somebody wrote to it, and it is kept for the segment's next payload, or
unmapped; then the sender is told that it may use the segment again. Control thread only, but for
that.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from comfy_cluster.protocol import SharedArrived, SharedEvent, SharedFailed
from comfy_cluster.transport.shared_memory.mappings import Mapping
from comfy_cluster.transport.shared_memory.records import Fate, Filled, GivenUp, Record, Released
from comfy_cluster.transport.shared_memory.stats import SharedMemoryStats
from comfy_cluster.transport.workers import WorkerPool

if TYPE_CHECKING:
    from comfy_cluster.transport.control import Command

logger = logging.getLogger("comfy_cluster.transport")

# Bytes of a mapping up to which the control thread reads its page tables or unmaps it itself, in
# 0.1 ms: waking a worker takes as long.
LARGEST_OWN_LOOK = 1 << 20
LARGEST_KEPT = 128  # mappings kept for a segment's next payload: page tables are memory too

Origin = tuple[int, int]
"""Number of the link, and segment: what is not of the present link is nobody's any more."""


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A mapping that shows a payload, and whose it is."""

    peer: int
    link_number: int
    segment_id: int
    mapping: Mapping


class SharedReceiver:
    """`tell(peer, record)` sends over the link to a peer, if there is one."""

    def __init__(
        self,
        *,
        workers: WorkerPool,
        post: Callable[[Command], None],
        stats: SharedMemoryStats,
        tell: Callable[[int, Record], object],
    ) -> None:
        self._workers = workers
        self._post = post
        self._stats = stats
        self._tell = tell
        self._open: dict[int, tuple[int, int]] = {}
        self._kept: dict[Origin, Mapping] = {}
        self._link_numbers: dict[int, int] = {}
        self._link_count = 0
        self._events: list[SharedEvent] = []
        # Both with what is needed to release a mapping; the first one is filled by any thread.
        self._unseen: deque[_Seen] = deque()
        self._looking: set[_Seen] = set()
        self._parting: set[Mapping] = set()  # a worker is to unmap them
        self._is_closed = False
        self.bytes_received: dict[int, int] = {}

    def take_events(self) -> list[SharedEvent]:
        taken, self._events = self._events, []
        return taken

    # Buffers

    def open(self, peer: int, buffer_id: int, size: int) -> None:
        self._open[buffer_id] = (peer, size)

    def close(self, buffer_id: int) -> None:
        self._open.pop(buffer_id, None)

    def on_given_up(self, peer: int, record: GivenUp) -> None:
        if self._open.get(record.buffer_id, (-1, 0))[0] == peer:
            self._fail(record.buffer_id, f"instance {peer} has no shared memory left")

    def on_filled(self, peer: int, record: Filled, fd: int | None) -> None:
        """`fd` is the caller's, and may be closed afterwards."""
        is_expected = self._open.get(record.buffer_id) == (peer, record.size)
        mapping = self._mapping_of(peer, record, fd)
        if mapping is None:
            self._tell(peer, Released(record.segment_id, Fate.UNMAPPED))
            if is_expected:
                self._fail(record.buffer_id, f"a segment of instance {peer} cannot be mapped")
            return
        seen = _Seen(peer, self._link_numbers[peer], record.segment_id, mapping)
        if not is_expected:  # it was given up here, or never asked for
            self._release(seen)
            return
        del self._open[record.buffer_id]
        self._stats.buffers_received += 1
        self._stats.bytes_received += record.size
        self.bytes_received[peer] = self.bytes_received.get(peer, 0) + record.size
        memory = mapping.show(record.size, partial(self._on_unseen, seen))
        self._events.append(SharedArrived(record.buffer_id, memory))

    def _mapping_of(self, peer: int, record: Filled, fd: int | None) -> Mapping | None:
        origin = (self._link_numbers[peer], record.segment_id)
        # With a descriptor the sender did not know yet that a mapping is kept; it will come back
        # to that one.
        kept = self._kept.pop(origin, None) if fd is None else None
        if kept is not None and kept.capacity == record.capacity >= record.size:
            self._stats.mappings_reused += 1
            return kept
        if kept is not None:
            self._part_with(kept)
        try:
            if fd is None:
                raise ValueError("it came without a descriptor")
            if record.capacity < record.size:
                raise ValueError(f"{record.size} bytes in a segment of {record.capacity}")
            return Mapping(fd, record.capacity)
        except (OSError, ValueError) as error:
            self._stats.refused_segments += 1
            logger.warning("! %d a segment of shared memory is refused: %s", peer, error)
            return None

    def _fail(self, buffer_id: int, reason: str) -> None:
        del self._open[buffer_id]
        self._events.append(SharedFailed(buffer_id, reason))

    # Mappings that nobody sees any more

    def _on_unseen(self, seen: _Seen) -> None:
        """From any thread, in the middle of anything: takes no lock."""
        self._unseen.append(seen)
        if self._is_closed:
            self._unmap_unseen()
        else:
            self._post(self._release_unseen)

    def _release_unseen(self, now: float) -> None:
        while self._unseen:
            self._release(self._unseen.popleft())

    def _release(self, seen: _Seen) -> None:
        if seen.mapping.capacity <= LARGEST_OWN_LOOK:
            self._on_looked(seen, _fate_of(seen.mapping))
            return
        self._looking.add(seen)
        self._workers.run(partial(self._look, seen))

    def _look(self, seen: _Seen) -> None:
        """On a worker thread: reading page tables and unmapping take their time."""
        fate = _fate_of(seen.mapping)
        self._post(lambda now: self._on_looked(seen, fate))

    def _on_looked(self, seen: _Seen, fate: Fate) -> None:
        self._looking.discard(seen)
        is_linked = self._link_numbers.get(seen.peer) == seen.link_number
        origin = (seen.link_number, seen.segment_id)
        if fate is Fate.KEPT:
            if is_linked and origin not in self._kept and len(self._kept) < LARGEST_KEPT:
                self._kept[origin] = seen.mapping
            else:
                fate = Fate.UNMAPPED
                self._part_with(seen.mapping)
        if is_linked:
            self._tell(seen.peer, Released(seen.segment_id, fate))

    def _part_with(self, mapping: Mapping) -> None:
        self._parting.add(mapping)
        self._workers.run(partial(self._unmap, mapping))

    def _unmap(self, mapping: Mapping) -> None:
        """On a worker thread, or never: the workers may end before."""
        mapping.unmap()
        self._parting.discard(mapping)

    def close_all(self) -> None:
        """Keeps nothing any more; what is seen is unmapped when it is not."""
        self._is_closed = True
        self._unmap_unseen()

    def _unmap_unseen(self) -> None:
        """Finalisers of other threads may do the same at the same time."""
        with contextlib.suppress(IndexError):
            while True:
                self._unseen.popleft().mapping.unmap()

    def free_memory(self) -> None:
        """After `close_all`, when no worker looks at a mapping any more."""
        looked_at = (seen.mapping for seen in self._looking)
        for mapping in (*self._kept.values(), *looked_at, *self._parting):
            mapping.unmap()
        self._kept.clear()
        self._looking.clear()
        self._parting.clear()

    def on_dropped(self, peer: int, segment_id: int) -> None:
        kept = self._kept.pop((self._link_numbers[peer], segment_id), None)
        if kept is not None:
            self._part_with(kept)

    # Links

    def on_link(self, peer: int) -> None:
        self._link_count += 1
        self._link_numbers[peer] = self._link_count

    def on_lost(self, peer: int, reason: str) -> None:
        """What was received stays; what was expected fails; nothing is kept."""
        number = self._link_numbers.pop(peer, None)
        for origin in [each for each in self._kept if each[0] == number]:
            self._part_with(self._kept.pop(origin))
        for buffer_id in [each for each, (owner, _) in self._open.items() if owner == peer]:
            self._fail(buffer_id, f"the link to instance {peer} is lost: {reason}")


def _fate_of(mapping: Mapping) -> Fate:
    """Keeps a mapping that shows what its segment holds, and unmaps any other."""
    fate = Fate.STILL_SEEN if mapping.is_seen_elsewhere else Fate.UNMAPPED
    if fate is Fate.UNMAPPED and mapping.is_untouched():
        return Fate.KEPT
    mapping.unmap()
    return fate
