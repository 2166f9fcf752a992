"""How many bytes of payload may be in transfer at once. Pure bookkeeping.

Both budgets let one transfer that is larger than all of the budget pass, alone: it would wait
forever otherwise.
"""

from __future__ import annotations


class OutgoingBudget:
    """Bytes of buffers that peers accepted and that are on their way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def has_room(self, size: int) -> bool:
        return self.used == 0 or self.used + size <= self.limit

    def take(self, size: int) -> None:
        self.used += size

    def give_back(self, size: int) -> None:
        self.used -= size


class IncomingBudget:
    """Bytes of memory given to incoming buffers, until the layer above has released them.

    Buffers that somebody waits for (claimed) may use all of it, the others half of it. So a claimed
    buffer never waits for memory of buffers that nobody fetches: what is left for it is a half, and
    if it needs more than that it passes as soon as no other claimed buffer holds memory.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.unclaimed_limit = limit // 2
        self.claimed = 0
        self.unclaimed = 0
        self.returning = 0

    @property
    def used(self) -> int:
        return self.claimed + self.unclaimed

    def has_room(self, size: int, *, is_claimed: bool) -> bool:
        fits = self.used + size <= self.limit
        if is_claimed:
            return fits or self.claimed == 0
        return fits and self.unclaimed + size <= self.unclaimed_limit

    def has_room_to_return(self, size: int) -> bool:
        """For what had its memory before: beside all others, within the limit with its like."""
        return self.returning == 0 or self.returning + size <= self.limit

    def take(self, size: int, *, is_claimed: bool, is_returning: bool = False) -> None:
        if is_returning:
            self.returning += size
        if is_claimed:
            self.claimed += size
        else:
            self.unclaimed += size

    def give_back(self, size: int, *, is_claimed: bool, is_returning: bool = False) -> None:
        self.take(-size, is_claimed=is_claimed, is_returning=is_returning)

    def move(self, size: int, *, to_claimed: bool) -> None:
        """A buffer that has its memory was claimed, or its claim was taken back."""
        self.give_back(size, is_claimed=not to_claimed)
        self.take(size, is_claimed=to_claimed)
