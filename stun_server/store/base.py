"""What the registry needs of a store, and the values that it keeps there.

Times are seconds. `expires_at` and `now` are on the store's own clock, which all processes that
share the store agree on and which no change of the wall clock moves where the system has such a
one; `last_ping_at` and audit times are Unix time, and only shown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

AUDIT_PER_CLUSTER = 10_000  # events, and some more until the next are dropped: none fills the store


def next_revision(revision: int, wall: float) -> int:
    """Milliseconds of Unix time, or the next number: a store that lost its last changes, as an
    older copy has, does not count them again for others."""
    return max(revision + 1, int(wall * 1000))


class StoreUnavailable(Exception):
    """The store cannot be read or written now; the text says which, where and why."""


class Lease(NamedTuple):
    """One instance's registration, for as long as it lasts."""

    instance_id: str
    boot_id: str
    """Names one run of the instance: a lease belongs to it, and to no other run."""
    address: str
    port: int
    role: str
    generation: int
    """Higher than that of every earlier lease of the cluster: the later run is told by it."""
    registered_at: float
    last_ping_at: float
    expires_at: float
    candidates: tuple[Mapping[str, Any], ...] = ()
    """Further addresses, as they were published."""
    replaced: tuple[str, ...] = ()
    """Boot ids that this lease took the index from, newest first; they do not come back."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A cluster's leases at one moment; expired ones are among them until they are removed."""

    epoch: str
    """Changes when the store was emptied or replaced, so that revisions start anew."""
    revision: int
    now: float
    """The store's clock at that moment."""
    leases: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """One of the keys that a cluster is opened with, by its hash."""

    key_hash: str
    created_at: float
    expires_at: float | None = None
    """Unix time; None: never."""
    is_operators: bool = False
    """Set by the operator, so that it is kept when nobody registers."""

    def is_valid(self, wall: float) -> bool:
        """Whether it opens the cluster at that Unix time."""
        return self.expires_at is None or self.expires_at > wall


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One line of the audit log."""

    at: float
    """Unix time."""
    event: str
    cluster_id: str
    instance_id: str = ""
    source: str = ""
    """IP address that asked; empty: the server itself, or the operator."""
    key_fingerprint: str = ""
    request_id: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """How much the store holds."""

    clusters: int
    """Those that have a key in the store."""
    leases: int


class Renewal(Enum):
    """What became of a heartbeat."""

    RENEWED = "renewed"
    MISSING = "missing"
    """No lease, or an expired one."""
    REPLACED = "replaced"
    """The lease is another run's."""


@dataclass(frozen=True, slots=True)
class FoundingLimits:
    """How many clusters may get their first key from whoever registers first."""

    clusters: int
    """That have a key in the store."""
    bucket: str
    """That the try is counted in."""
    tries: int
    """Counted in one window."""
    window: float
    """Seconds."""


class Founding(Enum):
    """What became of a cluster's first key."""

    DONE = "done"
    HELD = "held"
    """The cluster has a key, or had one that ended: it is not for whoever comes next."""
    TOO_MANY = "too many"
    """Tries of this bucket."""
    FULL = "full"
    """The store has as many clusters as it may; the try counts."""


class ClusterView(Protocol):
    """One cluster inside of one atomic step; what is done here is done as a whole or not at all.

    The step may be run again when another process was faster: it must have no other effect.
    """

    now: float
    revision: int

    def keys(self) -> tuple[ClusterKey, ...]:
        """As `Store.keys`; none goes while the step lasts."""

    def leases(self) -> dict[str, Lease]:
        """By instance id, expired ones included."""

    def put(self, lease: Lease) -> None:
        """With `bump`, unless it differs in its times alone: what a revision told is remembered."""

    def delete(self, instance_id: str) -> None: ...

    def bump(self) -> None:
        """The next revision: everybody who waits for a change of this cluster is woken."""

    def next_generation(self) -> int: ...

    def record(self, event: AuditEvent) -> None:
        """Appends to the audit log."""


class Store(Protocol):
    """Thread-safe, and safe to use after a fork. Everything raises StoreUnavailable."""

    def now(self) -> float:
        """The store's clock."""

    def update(self, cluster_id: str, step: Callable[[ClusterView], T]) -> T:
        """Runs `step` atomically; what it returns."""

    def renew(
        self, cluster_id: str, instance_id: str, boot_id: str | None, *, ttl: float, wall: float
    ) -> Renewal:
        """A heartbeat: moves `expires_at` to `ttl` from now. `boot_id` None fits any lease."""

    def listing(self, cluster_id: str) -> Listing:
        """Revision 0 and nothing for a cluster that was never registered."""

    def revisions(self, cluster_ids: Collection[str]) -> dict[str, int]:
        """The revision of each; cheap, for many."""

    def clusters_with_expired(self) -> list[str]:
        """Those with leases that look over; `update` tells whether they are, after an absence."""

    def keys(self, cluster_id: str) -> tuple[ClusterKey, ...]:
        """The newest first."""

    def clusters_with_key(self, key_hash: str) -> list[str]: ...

    def change_keys(
        self,
        cluster_id: str,
        change: Callable[[tuple[ClusterKey, ...]], tuple[ClusterKey, ...]],
        event: AuditEvent,
    ) -> tuple[ClusterKey, ...]:
        """Replaces a cluster's keys in one atomic, durable step; those that are valid after it.

        `change` gets those that have ended as well; of what it returns they are left out. The audit
        event is kept if the keys changed. Where none is left all that the cluster had is removed in
        the same step, and the event is the caller's to tell: who takes the id next is somebody
        else.
        """

    def found(
        self, cluster_id: str, key: ClusterKey, event: AuditEvent, limits: FoundingLimits
    ) -> Founding:
        """Gives a cluster its first key in one atomic, durable step, which keeps the limits too.

        What was kept under this id without a key goes: who had it then is somebody else.
        """

    def forget_idle(self, *, before: float) -> list[str]:
        """Removes clusters without leases and without a lasting key of the operator's that were
        last changed before that Unix time, with keys and audit: who takes such an id next is
        somebody else. The end of a key is a change. Their ids."""

    def count(self, bucket: str, *, window: float, wall: float) -> int:
        """Adds one to `bucket` in the window of `window` seconds that `wall` lies in; the sum."""

    def count_of(self, bucket: str, *, window: float, wall: float) -> int:
        """The sum without adding."""

    def audit(self, cluster_id: str, *, limit: int) -> list[AuditEvent]:
        """The newest first."""

    def prune_audit(self, *, before: float) -> None:
        """Drops events older than that Unix time."""

    def resume(self, *, ttl: float, silence: float) -> int:
        """Says that a server lives; gives each lease a fresh `ttl` if none has said so for
        `silence` seconds, except those that had expired by then. Returns how many were renewed.

        `update` and `renew` do the same, with what was given here last, before they call a lease
        over.
        """

    def totals(self) -> Totals: ...

    def close(self) -> None:
        """Closes this process's connections."""
