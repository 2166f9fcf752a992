"""Short turns at the GIL while payloads are under way.

How it works. A thread that wants the GIL while another one runs Python code has it after the
interpreter's switch interval, 5 ms by default. Chunks need no GIL, but around them a transfer
changes threads some ten times on each side (its caller, the control thread, workers, codecs), and
would wait each time while a node of ComfyUI keeps Python busy. So the interval is short while a
transport has payloads under way, and the control thread's timer puts the usual one back. Waiting
for what nobody has announced yet is no reason.
The interval is the interpreter's: all transports of a process share this module's `TURNS`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

SHORT_INTERVAL = 0.0002  # seconds; shorter gains nothing, as a switch itself takes some 0.05 ms
ROUNDING = 5e-7  # seconds: the interpreter cuts off what is less than a microsecond
LINGER = 0.1  # seconds after a payload: until its handle is done, and its caller runs again


class SwitchInterval:
    """Thread-safe. An interval that others made as short, or change meanwhile, is left alone.

    Who reads the interval meanwhile, to put it back later, puts the short one back.
    """

    def __init__(
        self,
        get: Callable[[], float] = sys.getswitchinterval,
        set_to: Callable[[float], object] = sys.setswitchinterval,
    ) -> None:
        self._get = get
        self._set_to = set_to
        self._lock = threading.Lock()
        self._usual: float | None = None
        self._short = 0.0
        self._restore_at = 0.0

    def shorten(self, now: float) -> None:
        """For the next `LINGER` seconds. A control thread must look at the timer after this."""
        with self._lock:
            self._restore_at = max(self._restore_at, now + LINGER)
            if self._usual is None and self._get() > SHORT_INTERVAL:
                self._usual = self._get()
                self._set_to(SHORT_INTERVAL)
                self._short = self._get()

    @property
    def restore_at(self) -> float | None:
        """When `restore_if_due` has something to do."""
        return None if self._usual is None else self._restore_at

    def restore_if_due(self, now: float) -> None:
        with self._lock:
            if now >= self._restore_at:
                self._restore()

    def restore(self) -> None:
        """Put the usual interval back at once; who still needs the short one asks again."""
        with self._lock:
            self._restore()

    def _restore(self) -> None:
        if self._usual is not None and self._get() == self._short:
            self._set_to(self._usual + ROUNDING)
        self._usual = None  # last, for a fork in between

    def restore_in_child(self) -> None:
        """No control thread came along through the fork, and the lock may be taken for ever."""
        self._lock = threading.Lock()
        self._restore()


TURNS = SwitchInterval()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TURNS.restore_in_child)
