"""What a process remembers of clusters, so that a list is read but for what heartbeats change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from stun_server.store.base import Lease

CLUSTERS_REMEMBERED = 1024
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

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[ClusterState, dict[str, Lease]]] = OrderedDict()
        self._lock = threading.Lock()

    def with_times(
        self, cluster_id: str, state: ClusterState, times: Iterable[tuple[str, float, float]]
    ) -> tuple[Lease, ...] | None:
        """The leases with these times: instance id, last ping, expiry. None: not known so."""
        with self._lock:
            known = self._known.get(cluster_id)
            if known is None or known[0] != state:
                return None
            self._known.move_to_end(cluster_id)
        leases = known[1]
        try:
            return tuple(
                # `_replace` takes three times as long.
                Lease._make(
                    (*leases[each][:_TIMES_AT], ping_at, ends_at, *leases[each][_TIMES_AT + 2 :])
                )
                for each, ping_at, ends_at in times
            )
        except KeyError:  # the store was changed by other hands
            return None

    def note(self, cluster_id: str, state: ClusterState, leases: Iterable[Lease]) -> None:
        """All leases of a cluster at one moment."""
        noted = (state, {lease.instance_id: lease for lease in leases})
        with self._lock:
            self._known[cluster_id] = noted
            self._known.move_to_end(cluster_id)
            if len(self._known) > CLUSTERS_REMEMBERED:
                self._known.popitem(last=False)
