"""The registry against a model of it: random registrations, heartbeats, removals, ends, restarts.

Hypothesis finds a short sequence of steps that ends otherwise than the model says. Time passes in
tens of seconds, so that what a step itself takes with Redis, whose clock is real, does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from stun_server.problems import ClusterFull, InstanceConflict, InstanceHeld, NotRegistered, Problem
from stun_server.registry import REPLACED_KEPT, Asker, Registration, Registry
from stun_server.settings import RegistrySettings
from stun_server.store import AuditEvent, Lease, Store
from tests.stun_server.redis_server import RedisServer
from tests.stun_server.timed_stores import TimedRedis, TimedSqlite, TimedStore

TTL = 70  # seconds
LATE_WITH = 35  # seconds left, or less: between two tens
OPERATORS = {"a": ("any-key",), "b": ("any-key",)}  # so that the store needs none
SILENCE = 15  # between two tens
INSTANCE_LIMIT = 2
CLUSTERS = st.sampled_from(["a", "b"])
INSTANCES = st.sampled_from(["0", "1", "worker"])
RUNS = st.integers(0, 4).map("run-{}".format)
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2"])
SPANS = st.sampled_from([10, 20, 40, 60, 70, 80])
# Of examples and steps; SQLite's take 2 ms a step, Redis' 5 ms.
BUDGETS = {"sqlite": (60, 30), "redis": (60, 30)}


@dataclass
class ModelLease:
    boot_id: str
    address: str
    ends_at: int
    generation: int
    replaced: tuple[str, ...] = ()


@dataclass
class ModelCluster:
    leases: dict[str, ModelLease] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    generation: int = 0
    """The highest so far."""
    revision: int = 0
    """As it was told last."""
    is_changed: bool = False
    """Since then."""

    def happen(self, event: str) -> None:
        self.events[event] += 1
        self.is_changed |= event != "conflict"

    def expire(self, now: int) -> None:
        for instance_id, lease in list(self.leases.items()):
            if lease.ends_at <= now:
                del self.leases[instance_id]
                self.happen("expire")


class RegistryMachine(RuleBasedStateMachine):
    """Does each step with the registry and with the model."""

    def __init__(self, timed: TimedStore) -> None:
        super().__init__()
        self.timed = timed
        self.now = 0
        self.alive_at = 0
        self.clusters = {"a": ModelCluster(), "b": ModelCluster()}
        self.told: Counter[tuple[str, str]] = Counter()
        self.is_unseen = False
        self.start()

    def start(self) -> None:
        self.store: Store = self.timed.opened()
        self.store.resume(ttl=TTL, silence=SILENCE)
        self.registry = Registry(
            self.store,
            RegistrySettings(
                instance_timeout=TTL, largest_cluster=INSTANCE_LIMIT, cluster_keys=OPERATORS
            ),
            wall=self.timed.wall,
            on_event=self.tell,
        )

    def tell(self, event: AuditEvent) -> None:
        self.told[event.cluster_id, event.event] += 1

    def teardown(self) -> None:
        self.timed.close()

    @rule(
        cluster_id=CLUSTERS,
        instance_id=INSTANCES,
        boot_id=RUNS,
        address=ADDRESSES,
        takes_over=st.booleans(),
    )
    def register(
        self, cluster_id: str, instance_id: str, boot_id: str, address: str, takes_over: bool
    ) -> None:
        self.is_unseen = False
        cluster = self.clusters[cluster_id]
        registration = Registration(
            instance_id, boot_id, address, 8189, "FOLLOWER", takes_over=takes_over
        )

        def act() -> Lease:
            return self.registry.register(cluster_id, registration, Asker())[0]

        self.meet_absence()
        cluster.expire(self.now)
        held = cluster.leases.get(instance_id)
        if held is None and len(cluster.leases) >= INSTANCE_LIMIT:
            raises(ClusterFull, act)
        elif held is not None and boot_id in held.replaced:
            raises(InstanceConflict, act)
            cluster.happen("conflict")
        elif held is not None and boot_id == held.boot_id:
            lease = act()
            assert lease.generation == held.generation
            if address != held.address:
                cluster.happen("update")
            held.address, held.ends_at = address, self.now + TTL
        elif held is not None and not takes_over and self.is_held(held, address):
            raises(InstanceHeld, act)
        else:
            lease = act()
            assert lease.generation > cluster.generation
            cluster.generation = lease.generation
            replaced = (held.boot_id, *held.replaced)[:REPLACED_KEPT] if held else ()
            cluster.leases[instance_id] = ModelLease(
                boot_id, address, self.now + TTL, lease.generation, replaced
            )
            cluster.happen("replace" if held else "register")

    def is_held(self, held: ModelLease, address: str) -> bool:
        return address != held.address and held.ends_at - self.now > LATE_WITH

    @rule(cluster_id=CLUSTERS, instance_id=INSTANCES, boot_id=st.none() | RUNS)
    def heartbeat(self, cluster_id: str, instance_id: str, boot_id: str | None) -> None:
        self.is_unseen = False
        cluster = self.clusters[cluster_id]

        def act() -> None:
            self.registry.heartbeat(cluster_id, instance_id, boot_id)

        self.meet_absence()
        cluster.expire(self.now)  # a heartbeat removes nothing, but who looks afterwards does
        held = cluster.leases.get(instance_id)
        if held is None:
            raises(NotRegistered, act)
        elif boot_id not in (None, held.boot_id):
            raises(InstanceConflict, act)
        else:
            act()
            held.ends_at = self.now + TTL

    @rule(cluster_id=CLUSTERS, instance_id=INSTANCES, boot_id=st.none() | RUNS)
    def remove(self, cluster_id: str, instance_id: str, boot_id: str | None) -> None:
        self.is_unseen = False
        cluster = self.clusters[cluster_id]

        def act() -> None:
            self.registry.remove(cluster_id, instance_id, Asker(), boot_id)

        self.meet_absence()
        cluster.expire(self.now)
        held = cluster.leases.get(instance_id)
        if held is None:
            raises(NotRegistered, act)
        elif boot_id not in (None, held.boot_id):
            raises(InstanceConflict, act)
        else:
            act()
            del cluster.leases[instance_id]
            cluster.happen("remove")

    def meet_absence(self) -> None:
        """Whoever is to judge leases gives those of before an absence a new time first."""
        if self.now - self.alive_at > SILENCE:
            for cluster in self.clusters.values():
                for lease in cluster.leases.values():
                    if lease.ends_at > self.alive_at:
                        lease.ends_at = self.now + TTL
            self.alive_at = self.now

    @rule(seconds=SPANS)
    def time_passes(self, seconds: int) -> None:
        """With a server that lives. Nobody looks, so that the next step meets what is over."""
        for _ in range(0, seconds, 10):
            self.timed.pass_time(10)
            self.now += 10
            self.store.resume(ttl=TTL, silence=SILENCE)
            self.meet_absence()
            self.alive_at = self.now
        self.is_unseen = True

    @rule(seconds=st.sampled_from([10, *range(20, 200, 30)]))
    def stand_still(self, seconds: int) -> None:
        """The first request after it comes before the next sign of life."""
        self.timed.pass_time(seconds)
        self.now += seconds
        self.is_unseen = True

    @rule(seconds=st.sampled_from([0, *range(20, 200, 30)]))
    def restart(self, seconds: int) -> None:
        self.timed.pass_time(seconds)
        self.now += seconds
        self.start()
        self.meet_absence()
        self.alive_at = self.now
        self.is_unseen = True

    @rule()
    def clean(self) -> None:
        self.is_unseen = False
        self.registry.expire_all()
        assert self.store.clusters_with_expired() == []
        if self.has_ended():
            self.meet_absence()

    def has_ended(self) -> bool:
        """Whether a lease looks over, so that whoever lists them looks closer."""
        leases = [each for cluster in self.clusters.values() for each in cluster.leases.values()]
        return any(lease.ends_at <= self.now for lease in leases)

    @invariant()
    def tells_what_the_model_says(self) -> None:
        if not self.is_unseen:
            if self.has_ended():
                self.meet_absence()
            for cluster_id, cluster in self.clusters.items():
                self.compare(cluster_id, cluster)

    def compare(self, cluster_id: str, cluster: ModelCluster) -> None:
        cluster.expire(self.now)
        listing = self.registry.listing(cluster_id)
        told = {
            lease.instance_id: ModelLease(
                lease.boot_id,
                lease.address,
                self.now + round((lease.expires_at - listing.now) / 10) * 10,
                lease.generation,
                lease.replaced,
            )
            for lease in listing.leases
        }
        assert told == cluster.leases
        assert all(lease.expires_at > listing.now for lease in listing.leases)
        assert listing.revision >= cluster.revision
        assert (listing.revision > cluster.revision) == cluster.is_changed
        assert self.store.revisions([cluster_id]) == {cluster_id: listing.revision}
        cluster.revision, cluster.is_changed = listing.revision, False
        events = Counter(event.event for event in self.store.audit(cluster_id, limit=1000))
        assert events == cluster.events
        assert +Counter({name: self.told[cluster_id, name] for name in events}) == events


def raises(problem: type[Problem], act: Callable[[], object]) -> None:
    with pytest.raises(problem):
        act()


def run(kind: str, timed: Callable[[], TimedStore]) -> None:
    examples, steps = BUDGETS[kind]
    budget = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )

    def make() -> RegistryMachine:
        return RegistryMachine(timed())

    run_state_machine_as_test(make, settings=budget)  # type: ignore[arg-type]


def test_registry_and_model_agree_on_sqlite(tmp_path: Path) -> None:
    numbers = iter(range(10_000))
    run("sqlite", lambda: TimedSqlite(tmp_path / f"{next(numbers)}.sqlite3"))


def test_registry_and_model_agree_on_redis(redis_server: RedisServer) -> None:
    def timed() -> TimedStore:
        redis_server.empty()
        return TimedRedis(redis_server.url, redis_server.client())

    run("redis", timed)


def test_a_lease_remembers_the_latest_of_those_it_was_taken_from(tmp_path: Path) -> None:
    timed = TimedSqlite(tmp_path / "registry.sqlite3")
    operators = RegistrySettings(instance_timeout=TTL, cluster_keys=OPERATORS)
    registry = Registry(timed.opened(), operators)

    def register(run: int) -> Lease:
        registration = Registration("0", f"run-{run}", "10.0.0.1", 8189, "LEADER")
        return registry.register("a", registration, Asker())[0]

    for run in range(REPLACED_KEPT + 2):
        lease = register(run)
    assert lease.replaced == tuple(f"run-{run}" for run in range(REPLACED_KEPT, 0, -1))
    raises(InstanceConflict, lambda: register(1))
    assert register(0).generation > lease.generation  # so long ago that nobody remembers
    timed.close()
