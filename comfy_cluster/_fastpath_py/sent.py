"""The packets sent to one peer: what is in flight, what each one carried.

A ring indexed by packet counter. Every packet takes a counter; only chunks are tracked, all others
leave an empty entry. Entries of lost packets stay until they are overwritten, so that a late SACK
still finds them.
"""

from __future__ import annotations

from .buffers import OutgoingBuffer

FIRST_CAPACITY = 256
MAX_CAPACITY = 65_536  # packets between the oldest unresolved one and the newest
RESERVE = 4096  # of these, kept for packets that are not chunks

EMPTY = 0
IN_FLIGHT = 1
LOST = 2


class SentEntry:
    """One chunk that was sent: when, how large, and what to send again if it is lost."""

    __slots__ = ("buffer", "chunk_index", "counter", "sent_at", "size", "state")

    def __init__(
        self, counter: int, buffer: OutgoingBuffer, chunk_index: int, *, size: int, sent_at: float
    ) -> None:
        self.counter = counter
        self.buffer = buffer
        self.chunk_index = chunk_index
        self.size = size
        self.sent_at = sent_at
        self.state = IN_FLIGHT


class SentPackets:
    """Ring of `SentEntry`, oldest unresolved to newest."""

    def __init__(self) -> None:
        self._entries: list[SentEntry | None] = [None] * FIRST_CAPACITY
        self.oldest = 0
        self.next_counter = 0
        self.bytes_in_flight = 0

    @property
    def has_room(self) -> bool:
        """Whether another chunk may be sent."""
        return self.next_counter - self.oldest < MAX_CAPACITY - RESERVE

    @property
    def is_full(self) -> bool:
        """Whether the oldest packet in flight stands in the way of the next counter."""
        return self.next_counter - self.oldest >= MAX_CAPACITY

    def take_counter(self) -> int:
        """Return the next packet counter, with an empty entry for it; not while `is_full`."""
        capacity = len(self._entries)
        if self.next_counter - self.oldest >= capacity and capacity < MAX_CAPACITY:
            self._grow()
        counter = self.next_counter
        self._entries[counter % len(self._entries)] = None
        self.next_counter += 1
        self._advance()
        return counter

    def put(self, entry: SentEntry) -> None:
        """Track a chunk under the counter just taken."""
        self._entries[entry.counter % len(self._entries)] = entry
        self.oldest = min(self.oldest, entry.counter)
        self.bytes_in_flight += entry.size

    def get(self, counter: int) -> SentEntry | None:
        """Return what was sent with this counter, if it is still known."""
        entry = self._entries[counter % len(self._entries)]
        return entry if entry is not None and entry.counter == counter else None

    def on_acked(self, entry: SentEntry) -> None:
        if entry.state == IN_FLIGHT:
            self.bytes_in_flight -= entry.size
        self._entries[entry.counter % len(self._entries)] = None
        self._advance()

    def on_lost(self, entry: SentEntry) -> None:
        entry.state = LOST
        self.bytes_in_flight -= entry.size
        self._advance()

    def forget_buffer(self, buffer: OutgoingBuffer) -> None:
        """Drop all entries of a buffer that is closed."""
        for entry in list(self._entries):
            if entry is not None and entry.buffer is buffer:
                self.on_acked(entry)

    def first_in_flight(self) -> SentEntry | None:
        """Return the oldest packet in flight; `oldest` always points at it."""
        return self.get(self.oldest) if self.oldest < self.next_counter else None

    def _advance(self) -> None:
        while self.oldest < self.next_counter:
            entry = self.get(self.oldest)
            if entry is not None and entry.state == IN_FLIGHT:
                return
            self.oldest += 1

    def _grow(self) -> None:
        old = self._entries
        self._entries = [None] * (2 * len(old))
        for entry in old:
            if entry is not None:
                self._entries[entry.counter % len(self._entries)] = entry
