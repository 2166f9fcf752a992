"""How many bodies may be on their way at once: each holds a thread while it comes."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from stun_server.problems import Overloaded
from stun_server.tries import network_of


class BodyPlaces:
    """Thread-safe. One source has half of the places at most, so that it cannot have them all."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._count_of_one = max(1, count // 2)
        self._taken: Counter[str] = Counter()  # by network
        self._lock = threading.Lock()  # guards the line above

    @contextlib.contextmanager
    def taken_by(self, source: str) -> Iterator[None]:
        """A place for as long as the block lasts. Overloaded: there is none for this source."""
        network = network_of(source)
        with self._lock:
            taken = self._taken
            if taken.total() >= self._count or taken[network] >= self._count_of_one:
                raise Overloaded
            taken[network] += 1
        try:
            yield
        finally:
            with self._lock:
                taken[network] -= 1
                if not taken[network]:
                    del taken[network]
