"""Payloads on their way into shared memory: copied once, handed to each peer that waits.

How it works. The protocol core opens a buffer when it announces it, and says `send` when the peer
has accepted. Buffers with the same payload (a broadcast) form one group with one segment: the first
`send` has it copied on the worker threads, in two halves if it is large, and whoever accepts later
finds it there. The copy takes no GIL. Nothing here decides that a transfer has failed: where a
segment cannot be had, the receiver is told, and answers as it does to all that did not come.
Control thread only, but for the copying.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from comfy_cluster.transport.shared_memory import system_calls
from comfy_cluster.transport.shared_memory.link import Link, LinkLost
from comfy_cluster.transport.shared_memory.records import (
    Dropped,
    Fate,
    Filled,
    GivenUp,
    Record,
    Released,
)
from comfy_cluster.transport.shared_memory.segments import Segment, SegmentPool
from comfy_cluster.transport.shared_memory.stats import SharedMemoryStats
from comfy_cluster.transport.workers import WorkerPool

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from comfy_cluster.transport.control import Command

    Octets = np.ndarray[Any, np.dtype[np.uint8]]

logger = logging.getLogger("comfy_cluster.transport")

# Bytes up to which the control thread copies itself, in 0.1 ms: waking a worker and being woken by
# it takes as long, and on a busy machine ten times that.
LARGEST_OWN_COPY = 1 << 20
# Bytes from which both worker threads copy: below, waking the second one takes as long.
SMALLEST_SHARED_COPY = 8 << 20


@dataclass(slots=True, eq=False)
class _Group:
    """Transfers of one payload."""

    prefix: bytes
    body: Buffer
    size: int
    peers: dict[int, int] = field(default_factory=dict)
    """Of each open buffer."""
    waiting: list[int] = field(default_factory=list)
    """Buffers whose peer has accepted, while the payload is being copied."""
    segment: Segment | None = None
    parts_left: int = 0
    is_filled: bool = False
    has_failed: bool = False


class SharedSender:
    """`links`: to the peers that share memory. `on_broken(peer, error)`: its link is lost."""

    def __init__(
        self,
        *,
        idle_limit: int,
        links: Mapping[int, Link],
        workers: WorkerPool,
        post: Callable[[Command], None],
        stats: SharedMemoryStats,
        on_broken: Callable[[int, LinkLost], object],
    ) -> None:
        self.pool = SegmentPool(idle_limit=idle_limit, stats=stats, on_dropped=self._on_dropped)
        self._links = links
        self._workers = workers
        self._post = post
        self._stats = stats
        self._on_broken = on_broken
        self._groups: dict[tuple[int, int], _Group] = {}
        self._by_buffer: dict[int, _Group] = {}
        self.bytes_sent: dict[int, int] = {}

    def open(self, peer: int, buffer_id: int, prefix: bytes, body: Buffer) -> None:
        key = (id(prefix), id(body))  # the group keeps both alive
        group = self._groups.get(key)
        if group is None:
            size = len(prefix) + memoryview(body).nbytes
            group = self._groups[key] = _Group(prefix, body, size)
        group.peers[buffer_id] = peer
        self._by_buffer[buffer_id] = group

    def send(self, buffer_id: int, now: float) -> None:
        group = self._by_buffer[buffer_id]
        if group.is_filled:
            self._hand_over(group, buffer_id)
            return
        group.waiting.append(buffer_id)
        if group.segment is None and not group.has_failed:
            self._fill(group, now)
        if group.has_failed:
            self._on_failed(group)

    def close(self, buffer_id: int, now: float) -> None:
        group = self._by_buffer.pop(buffer_id, None)
        if group is None:
            return
        del group.peers[buffer_id]
        if buffer_id in group.waiting:
            group.waiting.remove(buffer_id)
        if not group.peers:
            del self._groups[id(group.prefix), id(group.body)]
            if group.segment is not None and not group.parts_left:
                self.pool.on_unused(group.segment, now)

    # Copying

    def _fill(self, group: _Group, now: float) -> None:
        try:
            segment = self.pool.take(group.size)
        except OSError as error:
            logger.warning("! no shared memory for %d bytes: %s", group.size, error.strerror)
            group.has_failed = True
            return
        touched = segment.touched_size
        segment.touched_size = max(touched, group.size)
        group.segment = segment
        if group.size <= LARGEST_OWN_COPY:
            group.parts_left = 1
            failure = _copied_part(group, segment, 0, group.size, touched)
            self._on_copied(group, failure, now)
            return
        ranges = _halves(group.size)
        group.parts_left = len(ranges)
        for start, end in ranges:
            self._workers.run(partial(self._copy, group, segment, start, end, touched))

    def _copy(self, group: _Group, segment: Segment, start: int, end: int, touched: int) -> None:
        """On a worker thread."""
        error = _copied_part(group, segment, start, end, touched)
        self._post(lambda now: self._on_copied(group, error, now))

    def _on_copied(self, group: _Group, error: MemoryError | None, now: float) -> None:
        segment = group.segment
        assert segment is not None
        group.parts_left -= 1
        if error is not None:
            logger.warning("! no shared memory for %d bytes: %s", group.size, error)
            group.has_failed = True
        if group.parts_left:
            return
        if group.has_failed:
            group.segment = None
            segment.is_tainted = True  # some of its pages are not there
            self.pool.on_unused(segment, now)
            self._on_failed(group)
        elif group.peers:
            group.is_filled = True
            waiting, group.waiting = group.waiting, []
            for buffer_id in waiting:
                self._hand_over(group, buffer_id)
        else:
            self.pool.on_unused(segment, now)

    def _on_failed(self, group: _Group) -> None:
        waiting, group.waiting = group.waiting, []
        for buffer_id in waiting:
            self._stats.buffers_given_up += 1
            self._tell(group.peers[buffer_id], GivenUp(buffer_id))

    # Links

    def _hand_over(self, group: _Group, buffer_id: int) -> None:
        peer, segment = group.peers[buffer_id], group.segment
        assert segment is not None
        if peer not in self._links:
            return  # the receiver knows
        needs_descriptor = self.pool.lend(segment, peer)
        filled = Filled(buffer_id, segment.segment_id, group.size, segment.capacity)
        self._stats.buffers_sent += 1
        self._stats.bytes_sent += group.size
        self.bytes_sent[peer] = self.bytes_sent.get(peer, 0) + group.size
        self._tell(peer, filled, segment.descriptor.fd if needs_descriptor else None)

    def on_released(self, peer: int, released: Released, now: float) -> None:
        segment = self.pool.get(released.segment_id)
        fate = Fate(released.fate)
        if segment is not None:
            self.pool.on_released(segment, peer, fate, now)
        elif fate is Fate.KEPT:
            self._tell(peer, Dropped(released.segment_id))

    def _on_dropped(self, segment: Segment) -> None:
        for peer in segment.keepers:
            self._tell(peer, Dropped(segment.segment_id))

    def on_lost(self, peer: int, now: float) -> None:
        self.bytes_sent.pop(peer, None)
        self.pool.on_lost(peer, now)

    def _tell(self, peer: int, record: Record, fd: int | None = None) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        try:
            link.send(record, fd)
        except LinkLost as error:
            self._on_broken(peer, error)

    def close_all(self) -> None:
        """No copy is under way any more, or will ever end."""
        self.pool.close()


def _halves(size: int) -> list[tuple[int, int]]:
    if size < SMALLEST_SHARED_COPY:
        return [(0, size)]
    middle = size // 2 // 4096 * 4096
    return [(0, middle), (middle, size)]


def _copied_part(
    group: _Group, segment: Segment, start: int, end: int, touched: int
) -> MemoryError | None:
    """Copies a part of the payload; None, or why it could not."""
    missing = max(start, touched)
    try:
        if missing < end:
            system_calls.populate(segment.address + missing, end - missing)
    except MemoryError as error:
        return error
    _copy_range(segment.view(), (group.prefix, group.body), start, end)
    return None


def _copy_range(target: Octets, parts: tuple[Buffer, ...], start: int, end: int) -> None:
    """Bytes `start` to `end` of the parts, one after the other, to their place in `target`."""
    offset = 0
    for part in parts:
        source = np.asarray(memoryview(part).cast("B"))
        first, last = max(start, offset), min(end, offset + len(source))
        if first < last:
            np.copyto(target[first:last], source[first - offset : last - offset])
        offset += len(source)
