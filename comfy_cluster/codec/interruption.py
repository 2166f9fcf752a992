"""Ends codec work early: between its pieces, long work asks whether it is still wanted.

A thread that is inside torch when the interpreter ends takes the process down with it: torch is C++
and cannot be unwound from there. So the threads that encode and decode must end before that.

The codec calls `check_interruption`; `cluster/codec_pool.py` says what that does on its threads. It
belongs to the thread and is no argument: what asks is far below what knows, in functions that
otherwise only compute. Elsewhere, and where nobody set anything, work runs to its end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PIECE_SIZE = 1 << 20  # bytes: 50 ms of the slowest work here, deflate, on a slow core


class _ThreadState(threading.local):
    check: Callable[[], object] | None = None


_state = _ThreadState()


@contextmanager
def interruptible(check: Callable[[], object]) -> Iterator[None]:
    """On this thread, codec work calls `check` before each piece, and ends with what it raises."""
    previous = _state.check
    _state.check = check
    try:
        yield
    finally:
        _state.check = previous


def check_interruption() -> None:
    """Call it before each piece of long work; raises if the work is not wanted any more."""
    if _state.check is not None:
        _state.check()
