"""What the tests of the stores put into them, and look for."""

from __future__ import annotations

from typing import Any

from stun_server.store import AuditEvent, ClusterKey, ClusterView, Lease, Store
from tests.stun_server.timed_stores import START

TTL = 60.0  # seconds
SILENCE = 10.0
CANDIDATES = ({"type": "host", "address": "fd00::1", "port": 8189, "priority": 7},)


def lease(view: ClusterView, instance_id: str = "0", *, left: float = TTL, **given: Any) -> Lease:
    """One that ends `left` seconds from now."""
    values: dict[str, Any] = {
        "instance_id": instance_id,
        "boot_id": "run-1",
        "address": "10.0.0.1",
        "port": 8189,
        "role": "LEADER",
        "generation": view.next_generation(),
        "registered_at": START,
        "last_ping_at": START,
        "expires_at": view.now + left,
    }
    return Lease(**(values | given))


def put(store: Store, cluster_id: str, instance_id: str = "0", **given: Any) -> Lease:
    """Adds such a lease, and tells those who wait."""

    def step(view: ClusterView) -> Lease:
        added = lease(view, instance_id, **given)
        view.put(added)
        view.bump()
        return added

    return store.update(cluster_id, step)


def event(name: str = "register", cluster_id: str = "a", **given: Any) -> AuditEvent:
    values: dict[str, Any] = {"at": START, "event": name, "cluster_id": cluster_id}
    return AuditEvent(**(values | given))


def record(store: Store, *events: AuditEvent) -> None:
    def step(view: ClusterView) -> None:
        for each in events:
            view.record(each)

    store.update(events[0].cluster_id, step)


def set_keys(store: Store, cluster_id: str, *keys: ClusterKey) -> None:
    store.change_keys(cluster_id, lambda held: keys, event("key-set", cluster_id))


def key(digit: str = "1", at: float = START, **given: Any) -> ClusterKey:
    return ClusterKey(digit * 64, at, **given)


def ends(store: Store, cluster_id: str = "a") -> dict[str, float]:
    """Seconds until each lease is over, rounded: time goes on in Redis."""
    listing = store.listing(cluster_id)
    return {each.instance_id: round(each.expires_at - listing.now) for each in listing.leases}


def resume(store: Store) -> int:
    return store.resume(ttl=TTL, silence=SILENCE)
