"""A budget of bytes that is handed out in the order of asking.

Used by the collectives for encoded payloads: what does not fit waits its turn, and nothing is
ever refused. Knows nothing of tensors.

The limit of this: a payload keeps its bytes until its receivers have confirmed it, and who comes
later waits behind it, whatever its receivers need first. A receiver that must have a later payload
before it asks for an earlier one waits as long as the earlier one finds no memory there: unclaimed
payloads get a quarter of MEMORY_BUDGET. It does not happen while tensors are smaller than that,
or receivers ask for all that they need at once, or in the order of sending.
"""

from __future__ import annotations

import threading
from collections import deque

from comfy_cluster.transport.handle import Handle


class Admission:
    """Bytes taken from a budget, until they are given back."""

    def __init__(self, budget: ByteBudget, size: int) -> None:
        self._budget = budget
        self.size = size

    def shrink_to(self, size: int) -> None:
        """Gives back what turned out not to be needed; a size above the present one is ignored."""
        self._budget._give_back(self, size)

    def release(self) -> None:
        """Gives everything back; a second time does nothing."""
        self._budget._give_back(self, 0)


class ByteBudget:
    """At most `capacity` bytes are admitted at once; a larger request is admitted alone.

    Thread-safe. Handles complete in the thread that asks or gives back.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._used = 0
        self._waiting: deque[tuple[Admission, Handle[Admission]]] = deque()
        self._admitting: set[int] = set()  # threads
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes admitted at present."""
        return self._used

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def admit(self, size: int) -> Handle[Admission]:
        """A handle that is done when `size` bytes may be used; 0 bytes wait for nobody."""
        admission = Admission(self, size)
        if size == 0:
            return Handle.completed(admission)
        handle: Handle[Admission] = Handle("memory budget", on_cancel=lambda: self._forget(handle))
        with self._lock:
            self._waiting.append((admission, handle))
        self._admit_waiting()
        return handle

    def _forget(self, handle: Handle[Admission]) -> None:
        with self._lock:
            self._waiting = deque(item for item in self._waiting if item[1] is not handle)
        self._admit_waiting()  # what stood behind it may fit

    def _give_back(self, admission: Admission, size_left: int) -> None:
        with self._lock:
            size_left = min(size_left, admission.size)  # a release may have come in between
            self._used -= admission.size - size_left
            admission.size = size_left
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        """Who is admitted may give its bytes back at once, inside of this: the next one is admitted
        after that, not inside of it. There may be more waiting than Python nests calls."""
        thread = threading.get_ident()
        if thread in self._admitting:
            return
        self._admitting.add(thread)
        try:
            while (item := self._take_next()) is not None:
                admission, handle = item
                if not handle.set_result(admission):  # cancelled between the two
                    admission.release()
        finally:
            self._admitting.discard(thread)

    def _take_next(self) -> tuple[Admission, Handle[Admission]] | None:
        with self._lock:
            if not self._waiting:
                return None
            size = self._waiting[0][0].size
            if self._used > 0 and self._used + size > self.capacity:
                return None
            self._used += size
            return self._waiting.popleft()
