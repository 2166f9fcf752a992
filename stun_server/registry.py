"""The registry's rules: who gets a lease, when it ends, who may see a cluster, who takes over.

Knows no HTTP and no database. Leases end when they are looked at: nobody is ever told of an
instance whose time is over. A heartbeat changes nothing that others wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stun_server.keys import fingerprint
from stun_server.problems import (
    ClusterFull,
    InstanceConflict,
    InstanceHeld,
    KeyRefused,
    NotRegistered,
    Problem,
)
from stun_server.settings import RegistrySettings
from stun_server.store import AuditEvent, ClusterView, Lease, Listing, Renewal, Store

HEARTBEATS_PER_LEASE = 3
LATE_AFTER = 1.5  # intervals without a heartbeat
MOST_LOOKS = 3  # at a list, of which more may end between two looks
REPLACED_KEPT = 8  # boot ids that a lease remembers to have taken its index from


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, for the audit log."""

    source: str = ""
    """IP address."""
    key_fingerprint: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """What an instance tells of itself."""

    instance_id: str
    boot_id: str
    address: str
    port: int
    role: str
    candidates: tuple[Mapping[str, Any], ...] = ()
    takes_over: bool = True
    """Whether from a run elsewhere, too, that may be alive."""


class Registry:
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
        self._settings = settings
        self._wall = wall
        self._on_event = on_event

    @property
    def ttl(self) -> float:
        """Seconds that a lease lasts without a heartbeat."""
        return self._settings.instance_timeout

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between the heartbeats of an instance."""
        return self.ttl / HEARTBEATS_PER_LEASE

    def register(
        self, cluster_id: str, registration: Registration, asker: Asker
    ) -> tuple[Lease, Listing]:
        """Grants a lease, or renews it: the same registration twice is one.

        A new boot id takes the index over. One that was taken over from does not come back while
        its successor lives: InstanceConflict. InstanceHeld: it does not take over, and would have
        to. ClusterFull: there is no room for another instance. KeyRefused: the key that the asker
        was admitted by was taken away since.
        """
        events: list[AuditEvent] = []

        def step(view: ClusterView) -> tuple[Lease | None, Lease | None]:
            events.clear()
            self._check_key(view, cluster_id, asker)
            events.extend(self._expire(view, cluster_id))
            granted, rival, event = self._decide(view, registration)
            if event:
                happening = self._event(event, cluster_id, registration, asker, rival)
                view.record(happening)
                events.append(happening)
            return granted, rival

        granted, rival = self._store.update(cluster_id, step)
        self._tell(events)
        if granted is None:
            assert rival is not None
            raise self._refusal(registration, rival)
        return granted, self.listing(cluster_id)

    def heartbeat(self, cluster_id: str, instance_id: str, boot_id: str | None = None) -> None:
        """Renews a lease. NotRegistered: it is over. InstanceConflict: it is another run's."""
        renewal = self._store.renew(
            cluster_id, instance_id, boot_id, ttl=self.ttl, wall=self._wall()
        )
        if renewal is Renewal.MISSING:
            raise NotRegistered(instance_id)
        if renewal is Renewal.REPLACED:
            self._raise_conflict(cluster_id, instance_id)

    def remove(
        self, cluster_id: str, instance_id: str, asker: Asker, boot_id: str | None = None
    ) -> None:
        """Ends a lease. NotRegistered, InstanceConflict: as for `heartbeat`. KeyRefused: as for
        `register`."""
        events: list[AuditEvent] = []

        def step(view: ClusterView) -> bool | None:
            events.clear()
            self._check_key(view, cluster_id, asker)
            events.extend(self._expire(view, cluster_id))
            lease = view.leases().get(instance_id)
            if lease is None:
                return None
            if boot_id is not None and lease.boot_id != boot_id:
                return False
            view.delete(instance_id)
            view.bump()
            event = self._event("remove", cluster_id, lease, asker)
            view.record(event)
            events.append(event)
            return True

        is_removed = self._store.update(cluster_id, step)
        self._tell(events)
        if is_removed is None:
            raise NotRegistered(instance_id)
        if not is_removed:
            self._raise_conflict(cluster_id, instance_id)

    def listing(self, cluster_id: str) -> Listing:
        """Those whose leases last, by instance id; numbers as numbers."""
        listing = self._store.listing(cluster_id)
        for _ in range(MOST_LOOKS):
            if all(lease.expires_at > listing.now for lease in listing.leases):
                break
            self.expire(cluster_id)  # or renews them, where the server was away
            listing = self._store.listing(cluster_id)
        living = [lease for lease in listing.leases if lease.expires_at > listing.now]
        return replace(listing, leases=tuple(sorted(living, key=_order)))

    def is_late(self, lease: Lease, now: float) -> bool:
        """Whether a heartbeat is missing; `now` is on the store's clock."""
        return lease.expires_at - now < self.ttl - LATE_AFTER * self.heartbeat_interval

    def next_expiry(self, listing: Listing) -> float:
        """Seconds until the first of these leases ends, unless there is a heartbeat."""
        soonest = min((lease.expires_at for lease in listing.leases), default=None)
        return self.ttl if soonest is None else max(0.0, soonest - listing.now)

    def expire(self, cluster_id: str) -> None:
        """Removes the leases that are over."""
        events: list[AuditEvent] = []

        def step(view: ClusterView) -> None:
            events.clear()
            events.extend(self._expire(view, cluster_id))

        self._store.update(cluster_id, step)
        self._tell(events)

    def expire_all(self) -> None:
        """The same for all clusters."""
        for cluster_id in self._store.clusters_with_expired():
            self.expire(cluster_id)

    def _check_key(self, view: ClusterView, cluster_id: str, asker: Asker) -> None:
        """The gate looked before this step: by now the id may be without a key, or another's."""
        if cluster_id in self._settings.cluster_keys:  # they change by a restart only
            return
        wall = self._wall()
        keys = view.keys()
        valid = [fingerprint(key.key_hash) for key in keys if key.is_valid(wall)]
        if asker.key_fingerprint not in valid:
            raise KeyRefused

    def _decide(
        self, view: ClusterView, registration: Registration
    ) -> tuple[Lease | None, Lease | None, str]:
        """The lease that is granted, the one that was there, and what to call it; empty: nothing
        that others would notice."""
        wall = self._wall()
        leases = view.leases()
        held = leases.get(registration.instance_id)
        if held is None and len(leases) >= self._settings.largest_cluster:
            raise ClusterFull(
                f"The cluster has {len(leases)} instances, as many as this server takes: the "
                "operator can raise STUN_MAX_INSTANCES"
            )
        if held is not None and registration.boot_id in held.replaced:
            return None, held, "conflict"
        if (
            held is not None
            and not registration.takes_over
            and self._holds(held, registration, view.now)
        ):
            return None, held, ""
        if held is None or held.boot_id != registration.boot_id:
            lease = self._granted(view, registration, held, wall)
            event = "register" if held is None else "replace"
        else:
            lease = held._replace(
                address=registration.address,
                port=registration.port,
                role=registration.role,
                candidates=registration.candidates,
                last_ping_at=wall,
                expires_at=view.now + self.ttl,
            )
            event = "" if _says_same(lease, held) else "update"
        view.put(lease)
        if event:
            view.bump()
        return lease, held, event

    def _holds(self, held: Lease, registration: Registration, now: float) -> bool:
        """Whether a run that is another one, at another place, may be alive."""
        is_same_place = (held.address, held.port) == (registration.address, registration.port)
        is_same_run = held.boot_id == registration.boot_id
        return not is_same_run and not is_same_place and not self.is_late(held, now)

    @staticmethod
    def _refusal(registration: Registration, rival: Lease) -> Problem:
        if registration.boot_id in rival.replaced:
            return InstanceConflict(registration.instance_id, rival.address, rival.port)
        return InstanceHeld(registration.instance_id, rival.address, rival.port, rival.last_ping_at)

    def _granted(
        self, view: ClusterView, registration: Registration, held: Lease | None, wall: float
    ) -> Lease:
        return Lease(
            instance_id=registration.instance_id,
            boot_id=registration.boot_id,
            address=registration.address,
            port=registration.port,
            role=registration.role,
            generation=view.next_generation(),
            registered_at=wall,
            last_ping_at=wall,
            expires_at=view.now + self.ttl,
            candidates=registration.candidates,
            replaced=(held.boot_id, *held.replaced)[:REPLACED_KEPT] if held else (),
        )

    def _expire(self, view: ClusterView, cluster_id: str) -> list[AuditEvent]:
        events = []
        for lease in view.leases().values():
            if lease.expires_at <= view.now:
                view.delete(lease.instance_id)
                events.append(self._event("expire", cluster_id, lease, Asker()))
                view.record(events[-1])
        if events:
            view.bump()
        return events

    def _raise_conflict(self, cluster_id: str, instance_id: str) -> None:
        for lease in self._store.listing(cluster_id).leases:
            if lease.instance_id == instance_id:
                raise InstanceConflict(instance_id, lease.address, lease.port)
        raise NotRegistered(instance_id)  # it ended this moment

    def _event(
        self,
        event: str,
        cluster_id: str,
        subject: Lease | Registration,
        asker: Asker,
        rival: Lease | None = None,
    ) -> AuditEvent:
        detail = f"{subject.address} port {subject.port}, run {subject.boot_id}"
        if rival is not None and rival.boot_id != subject.boot_id:
            detail += f"; before: {rival.address} port {rival.port}, run {rival.boot_id}"
        return AuditEvent(
            at=self._wall(),
            event=event,
            cluster_id=cluster_id,
            instance_id=subject.instance_id,
            source=asker.source,
            key_fingerprint=asker.key_fingerprint,
            request_id=asker.request_id,
            detail=detail,
        )

    def _tell(self, events: list[AuditEvent]) -> None:
        for event in events:
            self._on_event(event)


def _says_same(lease: Lease, held: Lease) -> bool:
    names = ("address", "port", "role", "candidates")
    return all(getattr(lease, name) == getattr(held, name) for name in names)


def _order(lease: Lease) -> tuple[int, int, str]:
    is_number = lease.instance_id.isdecimal()
    return (0, int(lease.instance_id), "") if is_number else (1, 0, lease.instance_id)
