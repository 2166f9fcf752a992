"""What a fork means for shared memory: the child keeps no link, and sees what its parent saw.

A child's mappings show the same pages as the parent's. When the parent's tensor dies, the child's
copy of it may live on: a segment that was mapped when a fork happened is never written to again.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Closable(Protocol):
    def close(self) -> object: ...


_closables: weakref.WeakSet[Closable] = weakref.WeakSet()
_count = 0


def count() -> int:
    """Forks of this process so far."""
    return _count


def close_in_child(closable: Closable) -> None:
    """The child of a fork closes its copy of a descriptor."""
    _closables.add(closable)


class Descriptor:
    """A file descriptor with one owner."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        close_in_child(self)

    def close(self) -> None:
        """Twice is fine."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _on_fork() -> None:
    global _count
    _count += 1


def _close_all() -> None:
    for each in list(_closables):
        each.close()


if hasattr(os, "register_at_fork"):
    # Counted before the fork, so that no mapping is told to be free between the two.
    os.register_at_fork(before=_on_fork, after_in_child=_close_all)
