"""Who may see and change a cluster: keys are checked here, and wrong ones are counted.

A source with too many wrong keys is refused for the rest of the window, but for those of its keys
that were right before: behind one NAT a misconfigured instance harms none of its neighbours.
"""

from __future__ import annotations

import functools
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from stun_server.keys import fingerprint, hash_of, is_among
from stun_server.problems import ClusterFull, InvalidRequest, KeyRefused, TooManyFailures
from stun_server.registry import Asker
from stun_server.settings import KEY, KEY_FORM, RegistrySettings
from stun_server.store import AuditEvent, ClusterKey, Store

LARGEST_FAILURES = 10  # wrong keys of one source in a window
FAILURE_WINDOW = 10.0  # seconds
LARGEST_NEW_CLUSTERS = 30  # that one source may make in a window
NEW_CLUSTER_WINDOW = 60.0  # seconds
_REMEMBERED = 4096  # networks with right keys
_IPV6_NETWORK = 64  # bits; one subscriber has at least that


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
        self._right: OrderedDict[tuple[str, str], None] = OrderedDict()  # the latest last
        self._lock = threading.Lock()  # guards the line above

    def admit(self, cluster_id: str, key: str, asker: Asker) -> Asker:
        """`asker`, with the fingerprint of the key that opens this cluster.

        KeyRefused, TooManyFailures: it does not, or this source may not try now.
        """
        key_hash = self._hash_of(key)
        if not is_among(key_hash, self._keys(cluster_id), wall=self._wall()):
            self._refuse(asker.source)
        return self._admitted(key_hash, asker)

    def admit_new(self, cluster_id: str, key: str, asker: Asker) -> Asker:
        """The same for a registration, which gives a cluster that has no key this one.

        Call it when all else is known to be right. InvalidRequest: it is too weak for a key.
        """
        key_hash = self._hash_of(key)
        # Whatever the cluster: it tells nothing of which there are.
        if self._is_open and not KEY.fullmatch(key):
            raise InvalidRequest(f"X-Cluster-Key is no key: it must have {KEY_FORM}")
        if self._is_open and not self._keys(cluster_id):
            self._found(cluster_id, key_hash, asker)
        return self.admit(cluster_id, key, asker)

    def clusters_of(self, key: str, asker: Asker) -> list[str]:
        """The ids of the clusters that this key opens; at least one. KeyRefused: none."""
        key_hash = self._hash_of(key)
        found = [
            *(each for each in self._operators if self._opens(key_hash, each)),
            *(
                each
                for each in self._store.clusters_with_key(key_hash)
                if each not in self._operators and self._opens(key_hash, each)
            ),
        ]
        if not found:
            self._refuse(asker.source)
        self._admitted(key_hash, asker)
        return sorted(found)

    def _keys(self, cluster_id: str) -> tuple[ClusterKey, ...]:
        return self._operators.get(cluster_id) or self._store.keys(cluster_id)

    def _opens(self, key_hash: str, cluster_id: str) -> bool:
        return is_among(key_hash, self._keys(cluster_id), wall=self._wall())

    def _hash_of(self, key: str) -> str:
        if not key:
            raise KeyRefused
        return hash_of(key)

    def _found(self, cluster_id: str, key_hash: str, asker: Asker) -> None:
        self._admitted(key_hash, asker)  # a source that may try no keys makes no clusters either
        wall = self._wall()
        if self._store.totals().clusters >= self._largest_cluster_count:
            raise ClusterFull(
                "This server has as many clusters as it takes: the operator can raise "
                "STUN_MAX_CLUSTERS"
            )
        made = f"new:{_network_of(asker.source)}"
        if self._store.count_of(made, window=NEW_CLUSTER_WINDOW, wall=wall) >= LARGEST_NEW_CLUSTERS:
            raise TooManyFailures(
                f"{asker.source} has registered too many new clusters",
                _left(NEW_CLUSTER_WINDOW, wall),
            )
        event = AuditEvent(
            at=wall,
            event="key-set",
            cluster_id=cluster_id,
            source=asker.source,
            key_fingerprint=fingerprint(key_hash),
            request_id=asker.request_id,
            detail="by the first registration",
        )
        first = (ClusterKey(key_hash, wall),)
        kept = self._store.change_keys(cluster_id, lambda keys: keys or first, event)
        if kept == first:  # of all that come at once, one was the first
            self._store.count(made, window=NEW_CLUSTER_WINDOW, wall=wall)
            self._on_event(event)

    def _refuse(self, source: str) -> None:
        wall = self._wall()
        if self._is_over(source, wall, is_counted=True):
            raise _too_many(source, wall)
        raise KeyRefused

    def _is_over(self, source: str, wall: float, *, is_counted: bool) -> bool:
        """Whether it failed too often, this time counted or not. A flood costs no more writes."""
        bucket = f"key:{_network_of(source)}"
        if self._store.count_of(bucket, window=FAILURE_WINDOW, wall=wall) > LARGEST_FAILURES:
            return True
        if not is_counted:
            return False
        return self._store.count(bucket, window=FAILURE_WINDOW, wall=wall) > LARGEST_FAILURES

    def _admitted(self, key_hash: str, asker: Asker) -> Asker:
        pair = (_network_of(asker.source), key_hash)
        with self._lock:
            is_known = pair in self._right
            if is_known:
                self._right.move_to_end(pair)
        if not is_known:
            wall = self._wall()
            if self._is_over(asker.source, wall, is_counted=False):
                raise _too_many(asker.source, wall)
            with self._lock:
                self._right[pair] = None
                if len(self._right) > _REMEMBERED:
                    self._right.popitem(last=False)
        return Asker(asker.source, fingerprint(key_hash), asker.request_id)


def _too_many(source: str, wall: float) -> TooManyFailures:
    return TooManyFailures(
        f"{source} has sent too many wrong keys: check COMFY_CLUSTER_KEY of the instances there",
        _left(FAILURE_WINDOW, wall),
    )


def _left(window: float, wall: float) -> float:
    return window - wall % window


@functools.lru_cache(maxsize=_REMEMBERED)  # to read an address takes longer than all else here
def _network_of(source: str) -> str:
    """The address itself, or the network of an IPv6 address."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if address.version == 4 or address.ipv4_mapped:
        return str(getattr(address, "ipv4_mapped", None) or address)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK), strict=False))
