"""What a process remembers of clusters, so that a list is read but for what heartbeats change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from stun_server.store.base import Lease

# Of all clusters together; with eight candidates each they take some 100 MB in each process.
LEASES_REMEMBERED = 20_000
_TIMES_AT = Lease._fields.index("last_ping_at")  # and `expires_at` behind it
assert Lease._fields[_TIMES_AT + 1] == "expires_at"


class ClusterState(NamedTuple):
    """Names what a cluster was at one moment, but for what heartbeats change."""

    epoch: str
    revision: int
    changed_at: float
    """A store that lost its last changes, as an older copy has, uses their revisions again."""


class KnownLeases:
    """Each cluster's leases in the state that was seen last. Thread-safe."""

    def __init__(self, *, limit: int = LEASES_REMEMBERED) -> None:
        self._limit = limit
        self._known: OrderedDict[str, tuple[ClusterState, dict[str, Lease]]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()  # guards both

    @property
    def size(self) -> int:
        """Leases that are remembered; a cluster without any counts as one."""
        return self._size

    def with_times(
        self, cluster_id: str, state: ClusterState, times: Iterable[tuple[str, float, float]]
    ) -> tuple[Lease, ...] | None:
        """The leases with these times: instance id, last ping, expiry. None: not known so."""
        with self._lock:
            known = self._known.get(cluster_id)
            if known is None or known[0] != state:
                return None
            self._known.move_to_end(cluster_id)
        try:
            return leases_with_times(known[1], times)
        except KeyError:  # the store was changed by other hands
            return None

    def note(
        self, cluster_id: str, state: ClusterState, leases: Iterable[Lease]
    ) -> Mapping[str, Lease]:
        """All leases of a cluster at one moment; they come back by instance id."""
        noted = {lease.instance_id: lease for lease in leases}
        with self._lock:
            self._drop(cluster_id)
            if _size(noted) <= self._limit:
                self._known[cluster_id] = (state, noted)
                self._size += _size(noted)
            while self._size > self._limit:
                self._drop(next(iter(self._known)))
        return noted

    def _drop(self, cluster_id: str) -> None:
        if cluster_id in self._known:
            self._size -= _size(self._known.pop(cluster_id)[1])


def leases_with_times(
    leases: Mapping[str, Lease], times: Iterable[tuple[str, float, float]]
) -> tuple[Lease, ...]:
    """KeyError: one of these times is of none of the leases."""
    return tuple(
        # `_replace` takes three times as long.
        Lease._make((*leases[each][:_TIMES_AT], ping_at, ends_at, *leases[each][_TIMES_AT + 2 :]))
        for each, ping_at, ends_at in times
    )


def _size(leases: Mapping[str, Lease]) -> int:
    return max(1, len(leases))
