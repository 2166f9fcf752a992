"""A short while that things are given before they count: functions called later, on one thread.

Used by `jobs.py` alone. The thread is there only while something is due.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

CLOSE_TIMEOUT = 0.1  # seconds; what is called blocks nowhere


class Grace:
    """Calls functions `seconds` after they were handed in, in that order. Thread-safe."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due: deque[tuple[float, Callable[[], object]]] = deque()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._changed = threading.Condition()

    def call_later(self, fn: Callable[[], object]) -> None:
        """`fn` must neither block nor raise. It is not called if this closes before.

        It is called at once if the system gives this process no thread to wait on.
        """
        with self._changed:
            if self._is_closed:
                return
            if self._thread is not None or self._start_thread():
                self._due.append((time.monotonic() + self.seconds, fn))
                return
        fn()

    def _start_thread(self) -> bool:
        """Under the lock, for which the thread waits first. Whether there is one now."""
        thread = threading.Thread(target=self._work, name="comfy-cluster-grace", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def close(self) -> None:
        """Drops what is due and ends the thread. Twice is fine."""
        with self._changed:
            self._is_closed = True
            self._due.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT)

    def _work(self) -> None:
        while (fn := self._next()) is not None:
            fn()

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            while self._due:
                due_at, fn = self._due[0]
                left = due_at - time.monotonic()
                if left <= 0:
                    self._due.popleft()
                    return fn
                self._changed.wait(left)
            self._thread = None
            return None
