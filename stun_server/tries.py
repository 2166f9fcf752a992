"""Which source may try a key now: wrong keys are counted, and right ones remembered.

A source with too many wrong keys is refused for the rest of the window, but for those of its keys
that were right before: behind one NAT a misconfigured instance harms none of its neighbours. Both
are in the store, so that all workers and servers know them, and a restart forgets neither.

How it works: whoever is not known as right is refused before anything is looked up by cluster, so
that a refusal tells of none. A process knows those that were right here. The store is asked for the
others only when their source is over the limit, and told of each once in a long window.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from stun_server.problems import KeyRefused, TooManyFailures
from stun_server.store import Store, StoreUnavailable

LARGEST_FAILURES = 10  # wrong keys of one source in a window
FAILURE_WINDOW = 10.0  # seconds
RIGHT_WINDOW = 1800.0  # seconds; what was right is good for the rest of it and all of the next
_REMEMBERED = 8192  # tries that were right
_IPV6_NETWORK = 64  # bits; one subscriber has at least that


class Try(NamedTuple):
    """What is remembered when it was right."""

    network: str
    key_hash: str
    cluster_id: str
    """Empty: whichever clusters the key opens."""

    @property
    def bucket(self) -> str:
        """Where the store counts that it was right; nothing of it can be read there."""
        return "right:" + hashlib.sha256("\0".join(self).encode()).hexdigest()[:32]


class Tries:
    """Thread-safe. Everything but `was_right` raises StoreUnavailable."""

    def __init__(self, store: Store, *, wall: Callable[[], float]) -> None:
        self._store = store
        self._wall = wall
        self._right: OrderedDict[Try, float] = OrderedDict()  # when told to the store; latest last
        self._lock = threading.Lock()  # guards the line above

    def check(self, source: str, key_hash: str, cluster_id: str = "") -> bool:
        """Whether this was right before. TooManyFailures: it was not, and `source` has to wait."""
        tried = Try(network_of(source), key_hash, cluster_id)
        with self._lock:
            if tried in self._right:
                return True
        wall = self._wall()
        if not self._is_over(tried.network, wall):
            return False
        if not self._is_told(tried, wall) and not self._is_told(tried, wall - RIGHT_WINDOW):
            raise _too_many(source, wall)
        return True

    def fail(self, source: str) -> NoReturn:
        """Counts a wrong key. KeyRefused; TooManyFailures: there were too many before this one."""
        wall = self._wall()
        network = network_of(source)
        # A flood costs no more writes.
        if self._is_over(network, wall) or self._count_failure(network, wall) > LARGEST_FAILURES:
            raise _too_many(source, wall)
        raise KeyRefused

    def was_right(self, source: str, key_hash: str, cluster_id: str = "") -> None:
        """Remembers it, here and in the store."""
        wall = self._wall()
        window_at = wall // RIGHT_WINDOW
        tried = Try(network_of(source), key_hash, cluster_id)
        with self._lock:
            if self._right.get(tried) == window_at:
                self._right.move_to_end(tried)
                return
            tries = {tried, tried._replace(cluster_id="")}
            untold = [each for each in tries if self._right.get(each) != window_at]
            for each in tries:
                self._right[each] = window_at
                self._right.move_to_end(each)
            while len(self._right) > _REMEMBERED:
                self._right.popitem(last=False)
        with contextlib.suppress(StoreUnavailable):  # a right key needs no writable store
            for each in untold:
                if not self._is_told(each, wall):
                    self._store.count(each.bucket, window=RIGHT_WINDOW, wall=wall)

    def _is_told(self, tried: Try, wall: float) -> bool:
        return bool(self._store.count_of(tried.bucket, window=RIGHT_WINDOW, wall=wall))

    def _is_over(self, network: str, wall: float) -> bool:
        failures = self._store.count_of(f"key:{network}", window=FAILURE_WINDOW, wall=wall)
        return failures >= LARGEST_FAILURES

    def _count_failure(self, network: str, wall: float) -> int:
        return self._store.count(f"key:{network}", window=FAILURE_WINDOW, wall=wall)


def _too_many(source: str, wall: float) -> TooManyFailures:
    return TooManyFailures(
        f"{source} has sent too many wrong keys: check COMFY_CLUSTER_KEY of the instances there",
        seconds_left(FAILURE_WINDOW, wall),
    )


def seconds_left(window: float, wall: float) -> float:
    """Of the window that `wall` lies in."""
    return window - wall % window


@functools.lru_cache(maxsize=_REMEMBERED)  # to read an address takes longer than all else here
def network_of(source: str) -> str:
    """The address itself, or the network of an IPv6 address."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if address.version == 4 or address.ipv4_mapped:
        return str(getattr(address, "ipv4_mapped", None) or address)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK), strict=False))
