"""Who may see and change a cluster: keys are checked here; `tries.py` says who may try them."""

from __future__ import annotations

import time
from collections.abc import Callable

from stun_server.keys import fingerprint, hash_of, is_among
from stun_server.problems import ClusterFull, InvalidRequest, KeyRefused, TooManyFailures
from stun_server.registry import Asker
from stun_server.settings import KEY, KEY_FORM, RegistrySettings
from stun_server.store import AuditEvent, ClusterKey, Founding, FoundingLimits, Store
from stun_server.tries import Tries, network_of, seconds_left

LARGEST_NEW_CLUSTERS = 30  # that one source may make in a window
NEW_CLUSTER_WINDOW = 60.0  # seconds


class Gate:
    """Thread-safe. Everything raises StoreUnavailable."""

    def __init__(
        self,
        store: Store,
        settings: RegistrySettings,
        *,
        wall: Callable[[], float] = time.time,
        on_event: Callable[[AuditEvent], None] = lambda event: None,
    ) -> None:
        self._store = store
        self._is_open = settings.is_open
        self._largest_cluster_count = settings.largest_cluster_count
        self._operators = {
            cluster_id: tuple(ClusterKey(hash_of(key), 0.0, None, True) for key in keys)
            for cluster_id, keys in settings.cluster_keys.items()
        }
        self._wall = wall
        self._on_event = on_event
        self._tries = Tries(store, wall=wall)

    def admit(self, cluster_id: str, key: str, asker: Asker) -> Asker:
        """`asker`, with the fingerprint of the key that opens this cluster.

        KeyRefused, TooManyFailures: it does not, or this source may not try now.
        """
        key_hash = self._hash_of(key)
        keys = self._keys(cluster_id, key_hash, asker)
        return self._admitted(cluster_id, key_hash, keys, asker)

    def admit_new(self, cluster_id: str, key: str, asker: Asker) -> Asker:
        """The same for a registration, which gives a cluster that has no key this one.

        Call it when all else is known to be right. InvalidRequest: it is too weak for a key.
        """
        key_hash = self._hash_of(key)
        # Whatever the cluster: it tells nothing of which there are.
        if self._is_open and not KEY.fullmatch(key):
            raise InvalidRequest(f"X-Cluster-Key is no key: it must have {KEY_FORM}")
        keys = self._keys(cluster_id, key_hash, asker)
        if self._is_open and not keys:
            keys = self._found(cluster_id, key_hash, asker)
        return self._admitted(cluster_id, key_hash, keys, asker)

    def clusters_of(self, key: str, asker: Asker) -> list[str]:
        """The ids of the clusters that this key opens; at least one. KeyRefused: none."""
        key_hash = self._hash_of(key)
        self._tries.check(asker.source, key_hash)
        wall = self._wall()
        opened = [
            *(
                each
                for each, keys in self._operators.items()
                if is_among(key_hash, keys, wall=wall)
            ),
            *(
                each
                for each in self._store.clusters_with_key(key_hash)
                if each not in self._operators
                and is_among(key_hash, self._store.keys(each), wall=wall)
            ),
        ]
        if not opened:
            self._tries.fail(asker.source)
        self._tries.was_right(asker.source, key_hash)
        return sorted(opened)

    def _hash_of(self, key: str) -> str:
        if not key:
            raise KeyRefused
        return hash_of(key)

    def _keys(self, cluster_id: str, key_hash: str, asker: Asker) -> tuple[ClusterKey, ...]:
        """The cluster's. TooManyFailures."""
        is_known = self._tries.check(asker.source, key_hash, cluster_id)
        operators = self._operators.get(cluster_id, ())
        if operators and is_known:
            return operators
        # For an operator's cluster too: by the time that it takes, ids could be told.
        kept = self._store.keys(cluster_id)
        return operators or kept

    def _admitted(
        self, cluster_id: str, key_hash: str, keys: tuple[ClusterKey, ...], asker: Asker
    ) -> Asker:
        if not is_among(key_hash, keys, wall=self._wall()):
            self._tries.fail(asker.source)
        self._tries.was_right(asker.source, key_hash, cluster_id)
        return Asker(asker.source, fingerprint(key_hash), asker.request_id)

    def _found(self, cluster_id: str, key_hash: str, asker: Asker) -> tuple[ClusterKey, ...]:
        """Gives the cluster this key, unless another was faster; the keys that it has now."""
        wall = self._wall()
        made = f"new:{network_of(asker.source)}"
        too_many = TooManyFailures(
            f"{asker.source} has registered too many new clusters",
            seconds_left(NEW_CLUSTER_WINDOW, wall),
        )
        # The store looks at it as well, and locks others out for that: not for each of a flood.
        if self._store.count_of(made, window=NEW_CLUSTER_WINDOW, wall=wall) >= LARGEST_NEW_CLUSTERS:
            raise too_many
        event = AuditEvent(
            at=wall,
            event="key-set",
            cluster_id=cluster_id,
            source=asker.source,
            key_fingerprint=fingerprint(key_hash),
            request_id=asker.request_id,
            detail="by the first registration",
        )
        limits = FoundingLimits(
            clusters=self._largest_cluster_count,
            bucket=made,
            tries=LARGEST_NEW_CLUSTERS,
            window=NEW_CLUSTER_WINDOW,
        )
        first = ClusterKey(key_hash, wall)
        outcome = self._store.found(cluster_id, first, event, limits)
        if outcome is Founding.HELD:
            return self._store.keys(cluster_id)
        if outcome is Founding.TOO_MANY:
            raise too_many
        if outcome is Founding.FULL:
            raise ClusterFull(
                "This server has as many clusters as it takes: the operator can raise "
                "STUN_MAX_CLUSTERS"
            )
        self._on_event(event)
        return (first,)
