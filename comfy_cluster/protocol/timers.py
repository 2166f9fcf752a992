"""Timers of the protocol core: one deadline for each (kind, subject), ordered by time.

Setting one that is set moves it. Knows no clock: `now` comes in, seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from enum import Enum


class TimerKind(Enum):
    HELLO = "send HELLO again; subject: the peer"
    LIVENESS = "heartbeats are due, or a peer was silent for too long; no subject"
    MESSAGE = "send a message again, or give it up; subject: (peer, message id)"
    TRANSFER = "a transfer waited too long for a connection; subject: its id"
    CLAIM = "a claim waited too long for a connection; subject: the key"
    REROUTE = "what a route did not bring is sent by another one; subject: the payload's id"
    RELAY = "a buffer waited long enough to be relayed; subject: its id"
    UNCLAIMED = "nobody came for an arrived buffer; subject: its id"


Timer = tuple[TimerKind, Hashable]

# Cancelled and moved timers stay in the heap until they come up; above this many more of them than
# of live ones the heap is made anew, so that it stays in proportion.
_STALE_ALLOWANCE = 64


class Timers:
    """A heap of deadlines. Operations are O(log n)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._live: dict[Timer, tuple[float, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._live)

    def set(self, kind: TimerKind, subject: Hashable, at: float) -> None:
        timer = (kind, subject)
        self._count += 1
        self._live[timer] = (at, self._count)
        heapq.heappush(self._heap, (at, self._count, timer))
        if len(self._heap) > 2 * len(self._live) + _STALE_ALLOWANCE:
            self._heap = [(at, count, timer) for timer, (at, count) in self._live.items()]
            heapq.heapify(self._heap)

    def cancel(self, kind: TimerKind, subject: Hashable) -> None:
        self._live.pop((kind, subject), None)

    @property
    def next_at(self) -> float | None:
        """When the first timer is due; None: no timer is set."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> Timer | None:
        """Take the first timer that is due; None: none is."""
        self._drop_stale()
        if not self._heap or self._heap[0][0] > now:
            return None
        timer = heapq.heappop(self._heap)[2]
        del self._live[timer]
        return timer

    def _drop_stale(self) -> None:
        heap = self._heap
        while heap and self._live.get(heap[0][2]) != heap[0][:2]:
            heapq.heappop(heap)
