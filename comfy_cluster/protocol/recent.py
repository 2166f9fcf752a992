"""A set that remembers the newest of what was put into it, and so stays small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

LARGEST_RECENT = 1_024


class RecentSet(Generic[T]):
    def __init__(self, limit: int = LARGEST_RECENT) -> None:
        self._limit = limit
        self._items: dict[T, None] = {}

    def __contains__(self, item: T) -> bool:
        return item in self._items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        """The oldest first."""
        return iter(self._items)

    def add(self, item: T) -> None:
        self._items.pop(item, None)
        self._items[item] = None
        if len(self._items) > self._limit:
            del self._items[next(iter(self._items))]

    def discard(self, item: T) -> None:
        self._items.pop(item, None)
