"""Two sets of small integers: the chunks of a buffer, and the packet counters seen lately."""

from __future__ import annotations

from .packet import SACK_MAX_WORDS

HISTORY_WINDOW = 64 * SACK_MAX_WORDS  # packets; what falls out of it is refused as a replay
SACK_REDUNDANCY = 8  # each arrival is reported in so many SACKs: they may be lost themselves
WORD_MASK = (1 << 64) - 1


class ChunkBitmap:
    """Which of `chunk_count` chunks are there."""

    __slots__ = ("_chunk_count", "_count", "_words")

    def __init__(self, chunk_count: int) -> None:
        if not 0 <= chunk_count <= 0xFFFFFFFF:
            raise ValueError(f"chunk_count must be 0 to 2**32 - 1, not {chunk_count}")
        self._chunk_count = chunk_count
        self._words = [0] * ((chunk_count + 63) // 64)
        self._count = 0

    @property
    def chunk_count(self) -> int:
        return self._chunk_count

    @property
    def count(self) -> int:
        """How many chunks are there."""
        return self._count

    @property
    def is_complete(self) -> bool:
        return self._count == self._chunk_count

    def add(self, index: int) -> bool:
        """Add a chunk. Return True when it is new, False when it was there or is out of range."""
        if not 0 <= index < self._chunk_count or self._words[index >> 6] >> (index & 63) & 1:
            return False
        self._words[index >> 6] |= 1 << (index & 63)
        self._count += 1
        return True

    def __contains__(self, index: int) -> bool:
        return 0 <= index < self._chunk_count and bool(self._words[index >> 6] >> (index & 63) & 1)

    def first_missing(self) -> int:
        """Return the lowest missing index, or `chunk_count` when the set is complete."""
        for number, word in enumerate(self._words):
            missing = ~word & WORD_MASK
            if missing:
                index = 64 * number + (missing & -missing).bit_length() - 1
                return min(index, self._chunk_count)
        return self._chunk_count

    def missing_ranges(self, limit: int) -> list[tuple[int, int]]:
        """Return up to `limit` ranges [first, end) of missing chunks, lowest first."""
        ranges: list[tuple[int, int]] = []
        index = 0
        while index < self._chunk_count and len(ranges) < limit:
            if index in self:
                index += 1
                continue
            first = index
            while index < self._chunk_count and index not in self:
                index += 1
            ranges.append((first, index))
        return ranges


class ReceiveHistory:
    """The last `HISTORY_WINDOW` packet counters of a peer: refuses replays, fills SACKs."""

    __slots__ = ("_largest", "_lowest_new", "_sack_number", "_words")

    def __init__(self) -> None:
        self._largest = -1
        self._words = [0] * SACK_MAX_WORDS
        self._lowest_new: list[int | None] = [None] * SACK_REDUNDANCY
        self._sack_number = 0

    @property
    def largest(self) -> int:
        """The largest counter so far, -1 before the first."""
        return self._largest

    def is_new(self, counter: int) -> bool:
        """Tell whether this counter may be accepted: not seen, and not too old to know."""
        if counter > self._largest:
            return True
        if (counter >> 6) + SACK_MAX_WORDS <= self._largest >> 6:
            return False
        return not self._words[(counter >> 6) % SACK_MAX_WORDS] >> (counter & 63) & 1

    def add(self, counter: int) -> None:
        """Record a counter for which `is_new` holds."""
        if counter > self._largest:
            self._advance(counter)
        self._words[(counter >> 6) % SACK_MAX_WORDS] |= 1 << (counter & 63)
        slot = self._sack_number % SACK_REDUNDANCY
        lowest = self._lowest_new[slot]
        if lowest is None or counter < lowest:
            self._lowest_new[slot] = counter

    def _advance(self, counter: int) -> None:
        first = (self._largest >> 6) + 1
        for number in range(max(first, (counter >> 6) - SACK_MAX_WORDS + 1), (counter >> 6) + 1):
            self._words[number % SACK_MAX_WORDS] = 0
        self._largest = counter

    def sack_words(self) -> list[int]:
        """Return the words of the next SACK (see `pack_sack`); at least one `add` came before."""
        last = self._largest >> 6
        lowest = min([value for value in self._lowest_new if value is not None], default=0)
        count = min(last - min(lowest >> 6, last) + 1, SACK_MAX_WORDS)
        self._sack_number += 1
        self._lowest_new[self._sack_number % SACK_REDUNDANCY] = None
        return [
            self._words[number % SACK_MAX_WORDS] for number in range(last - count + 1, last + 1)
        ]
