"""Places where a test stops an instance, sees that it got there, and lets it go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one
LOOK = 0.005  # seconds between two looks at the interrupt flag, as nodes do it


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """For what nothing tells of: looks again and again."""
    deadline = time.monotonic() + WAIT
    while not is_so():
        assert time.monotonic() < deadline, f"not so: {what}"
        threading.Event().wait(LOOK)


class Gate:
    """Open at first. Thread-safe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.passed_count = 0
        """Those who came by, also who waits."""
        self._is_open = True
        self._changed = threading.Condition()

    def close(self) -> None:
        with self._changed:
            self._is_open = False

    def open(self) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def pass_through(self, is_over: Callable[[], bool]) -> None:
        """Waits while it is closed, unless `is_over()`."""
        with self._changed:
            self.passed_count += 1
            self._changed.notify_all()
            while not self._is_open and not is_over():
                self._changed.wait(LOOK)

    def wait_for(self, count: int = 1) -> None:
        """Until somebody came by for the `count`th time."""
        with self._changed:
            came = self._changed.wait_for(lambda: self.passed_count >= count, WAIT)
        assert came, f"nobody came to {self.name} for the {count}th time"
