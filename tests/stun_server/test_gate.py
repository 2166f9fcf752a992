"""Who may see and change a cluster: keys, and limits on new clusters."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stun_server.gate import LARGEST_NEW_CLUSTERS, NEW_CLUSTER_WINDOW, Gate
from stun_server.keys import fingerprint, hash_of
from stun_server.problems import ClusterFull, InvalidRequest, KeyRefused, TooManyFailures
from stun_server.registry import Asker, Registration, Registry
from stun_server.settings import RegistrySettings
from stun_server.store import AuditEvent, ClusterKey, Store
from tests.stun_server.gates import ASKER, KEY, OTHER_KEY, WRONG_KEY
from tests.stun_server.store_steps import event, put, record, set_keys
from tests.stun_server.timed_stores import START, TimedStore

REGISTRATION = Registration("0", "run-1", "10.0.0.1", 8189, "LEADER")

# Keys.


def test_the_first_registration_sets_the_key(
    gate_of: Callable[..., Gate], store: Store, timed: TimedStore
) -> None:
    told: list[AuditEvent] = []
    gate = gate_of(on_event=told.append)
    admitted = gate.admit_new("a", KEY, ASKER)
    assert admitted == replace(ASKER, key_fingerprint=fingerprint(hash_of(KEY)))
    assert store.keys("a") == (ClusterKey(hash_of(KEY), START),)
    assert [(each.event, each.request_id) for each in told] == [("key-set", "request-1")]
    assert store.audit("a", limit=10) == told
    assert gate.admit_new("a", KEY, ASKER) == admitted
    assert gate.admit("a", KEY, ASKER) == admitted
    assert len(told) == 1


@pytest.mark.parametrize("key", ["", WRONG_KEY, KEY[:-1], KEY + "x", KEY.upper(), "\u00e9" * 32])
def test_another_key_opens_nothing(gate: Gate, store: Store, key: str) -> None:
    gate.admit_new("a", KEY, ASKER)
    with pytest.raises(KeyRefused):
        gate.admit("a", key, ASKER)
    with pytest.raises((KeyRefused, InvalidRequest)):
        gate.admit_new("a", key, ASKER)
    assert len(store.keys("a")) == 1


@pytest.mark.parametrize("key", ["short", "\u00e9" * 32])
def test_what_cannot_be_a_key_tells_nothing_of_the_cluster(gate: Gate, key: str) -> None:
    gate.admit_new("a", KEY, ASKER)
    texts = set()
    for cluster_id in ("a", "missing"):
        with pytest.raises(InvalidRequest) as caught:
            gate.admit_new(cluster_id, key, ASKER)
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_no_such_cluster_and_wrong_key_are_the_same(gate: Gate) -> None:
    gate.admit_new("a", KEY, ASKER)
    texts = set()
    for cluster_id, key in (("a", WRONG_KEY), ("missing", KEY), ("missing", ""), ("a", "")):
        with pytest.raises(KeyRefused) as caught:
            gate.admit(cluster_id, key, ASKER)
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_a_closed_server_takes_no_new_cluster(gate_of: Callable[..., Gate], store: Store) -> None:
    closed = gate_of(is_open=False)
    with pytest.raises(KeyRefused):
        closed.admit_new("a", KEY, ASKER)
    assert store.keys("a") == ()
    set_keys(store, "a", ClusterKey(hash_of(KEY), START, None, True))
    closed.admit_new("a", KEY, ASKER)


def test_the_operators_keys_take_the_place_of_those_in_the_store(
    gate_of: Callable[..., Gate], store: Store
) -> None:
    gate_of().admit_new("a", KEY, ASKER)
    gate_of().admit_new("b", KEY, ASKER)
    configured = gate_of(cluster_keys={"a": (OTHER_KEY, "second-" + OTHER_KEY)})
    for key in (OTHER_KEY, "second-" + OTHER_KEY):
        configured.admit("a", key, ASKER)
    for admit in (configured.admit, configured.admit_new):
        with pytest.raises(KeyRefused):
            admit("a", KEY, ASKER)
    configured.admit("b", KEY, ASKER)
    assert configured.clusters_of(OTHER_KEY, ASKER) == ["a"]
    assert configured.clusters_of(KEY, ASKER) == ["b"]


def test_two_keys_are_good_while_they_are_exchanged(
    gate: Gate, store: Store, timed: TimedStore
) -> None:
    new = ClusterKey(hash_of(KEY), START, None, True)
    old = ClusterKey(hash_of(OTHER_KEY), START - 1, START + 3600, True)
    set_keys(store, "a", new, old)
    fingerprints = {gate.admit("a", key, ASKER).key_fingerprint for key in (KEY, OTHER_KEY)}
    assert fingerprints == {fingerprint(new.key_hash), fingerprint(old.key_hash)}
    timed.wall.at = START + 3600
    gate.admit("a", KEY, ASKER)
    for admit in (gate.admit, gate.admit_new):  # also where it was right a moment ago
        with pytest.raises(KeyRefused):
            admit("a", OTHER_KEY, ASKER)
    with pytest.raises(KeyRefused):
        gate.clusters_of(OTHER_KEY, ASKER)


def test_a_cluster_whose_keys_have_all_ended_is_not_for_the_next_who_comes(
    gate: Gate, store: Store, timed: TimedStore
) -> None:
    set_keys(store, "a", ClusterKey(hash_of(KEY), START, START + 1, True))
    timed.wall.at = START + 1
    for key in (KEY, OTHER_KEY):
        with pytest.raises(KeyRefused):
            gate.admit_new("a", key, ASKER)


@pytest.mark.parametrize("key", ["short", "k" * 15, "with blanks in it, and long", "k" * 2000])
def test_a_weak_key_founds_no_cluster(gate: Gate, store: Store, key: str) -> None:
    with pytest.raises(InvalidRequest, match="16 or more") as caught:
        gate.admit_new("a", key, ASKER)
    assert key not in str(caught.value)
    assert store.keys("a") == ()


def test_the_clusters_of_a_key_are_those_that_it_opens(gate: Gate, store: Store) -> None:
    for cluster_id, key in (("b", KEY), ("a", KEY), ("c", OTHER_KEY)):
        gate.admit_new(cluster_id, key, ASKER)
    assert gate.clusters_of(KEY, ASKER) == ["a", "b"]
    with pytest.raises(KeyRefused):
        gate.clusters_of(WRONG_KEY, ASKER)


def test_first_registrations_at_once_set_one_key(
    gate_of: Callable[..., Gate], store: Store, at_once: Callable[..., list[str]]
) -> None:
    told: list[AuditEvent] = []
    gate = gate_of(on_event=told.append)
    numbers = iter(range(100))

    def found() -> str:
        key = f"{KEY}-{next(numbers)}"
        try:
            gate.admit_new("a", key, Asker(f"192.0.2.{key[-1]}"))
        except KeyRefused:
            return ""
        return key

    winners = [key for key in at_once(found, threads=6, times=1) if key]
    assert [hash_of(key) for key in winners] == [each.key_hash for each in store.keys("a")]
    assert [each.event for each in told] == ["key-set"]


# Keys that go between the gate and the step.


def registry_of(store: Store, timed: TimedStore, **given: Any) -> Registry:
    return Registry(store, RegistrySettings(**given), wall=timed.wall)


def test_a_key_that_goes_after_the_gate_registers_and_removes_nothing(
    gate: Gate, store: Store, timed: TimedStore
) -> None:
    registry = registry_of(store, timed)
    admitted = gate.admit_new("a", KEY, ASKER)
    registry.register("a", REGISTRATION, admitted)
    set_keys(store, "a")
    with pytest.raises(KeyRefused):
        registry.register("a", REGISTRATION, admitted)
    assert store.listing("a").leases == ()
    assert store.revisions(["a"]) == {"a": 0}
    assert store.audit("a", limit=10) == []
    other = gate.admit_new("a", OTHER_KEY, Asker("192.0.2.2"))  # the id is another's by now
    registry.register("a", REGISTRATION, other)
    for act in (
        lambda: registry.register("a", replace(REGISTRATION, boot_id="run-2"), admitted),
        lambda: registry.remove("a", "0", admitted),
    ):
        with pytest.raises(KeyRefused):
            act()
    assert [lease.boot_id for lease in store.listing("a").leases] == ["run-1"]


def test_a_key_that_ends_after_the_gate_registers_nothing(
    gate: Gate, store: Store, timed: TimedStore
) -> None:
    set_keys(store, "a", ClusterKey(hash_of(KEY), START, START + 1))
    admitted = gate.admit("a", KEY, ASKER)
    timed.wall.at = START + 1
    with pytest.raises(KeyRefused):
        registry_of(store, timed).register("a", REGISTRATION, admitted)


def test_the_operators_clusters_need_no_key_in_the_store(
    gate_of: Callable[..., Gate], store: Store, timed: TimedStore
) -> None:
    given = {"cluster_keys": {"a": (KEY,)}}
    admitted = gate_of(**given).admit_new("a", KEY, ASKER)
    registry = registry_of(store, timed, **given)
    registry.register("a", REGISTRATION, admitted)
    registry.remove("a", "0", admitted)
    assert store.keys("a") == ()


# Limits on new clusters.


def test_one_source_makes_so_many_clusters_and_no_more(
    gate_of: Callable[..., Gate], store: Store, timed: TimedStore
) -> None:
    gates = gate_of(), gate_of()
    for number in range(LARGEST_NEW_CLUSTERS):
        gates[number % 2].admit_new(f"c{number}", KEY, ASKER)
    for gate in gates:
        with pytest.raises(TooManyFailures, match="too many new clusters") as caught:
            gate.admit_new("more", KEY, ASKER)
        assert 0 < (caught.value.retry_after or 0) <= NEW_CLUSTER_WINDOW
    assert store.keys("more") == ()
    gates[0].admit_new("c1", KEY, ASKER)  # those that there are go on
    gates[0].admit_new("others", KEY, Asker("192.0.2.2"))
    timed.wall.at += caught.value.retry_after or 0
    gates[0].admit_new("more", KEY, ASKER)


def test_the_server_takes_so_many_clusters_and_no_more(
    gate_of: Callable[..., Gate], store: Store
) -> None:
    gate = gate_of(largest_cluster_count=2)
    gate.admit_new("a", KEY, ASKER)
    gate.admit_new("b", OTHER_KEY, ASKER)
    with pytest.raises(ClusterFull, match="STUN_MAX_CLUSTERS"):
        gate.admit_new("c", KEY, ASKER)
    assert store.keys("c") == ()
    gate.admit_new("a", KEY, ASKER)


def outcomes(gate: Gate, at_once: Callable[..., list[str]], threads: int) -> Counter[str]:
    """Of so many registrations of new clusters by one source at once."""
    numbers = itertools.count()

    def found() -> str:
        try:
            gate.admit_new(f"c{next(numbers)}", KEY, ASKER)
        except (ClusterFull, TooManyFailures) as problem:
            return problem.code
        return "founded"

    return Counter(at_once(found, threads=threads, times=3))


def test_new_clusters_at_once_are_no_more_than_one_source_may_make(
    gate: Gate, store: Store, at_once: Callable[..., list[str]]
) -> None:
    told = outcomes(gate, at_once, 16)
    assert told == {"founded": LARGEST_NEW_CLUSTERS, "too_many_failures": 18}
    assert store.totals().clusters == LARGEST_NEW_CLUSTERS


def test_new_clusters_at_once_are_no_more_than_the_server_takes(
    gate_of: Callable[..., Gate], store: Store, at_once: Callable[..., list[str]]
) -> None:
    gate = gate_of(largest_cluster_count=2)
    told = outcomes(gate, at_once, 8)
    assert (told["founded"], store.totals().clusters) == (2, 2)
    assert told["full"] == 22


def test_the_instances_of_one_new_cluster_count_once(
    gate: Gate, store: Store, at_once: Callable[..., list[str]]
) -> None:
    def register() -> str:
        return gate.admit_new("a", KEY, ASKER).key_fingerprint

    at_once(register, threads=LARGEST_NEW_CLUSTERS + 2, times=1)
    made = f"new:{ASKER.source}"
    assert store.count_of(made, window=NEW_CLUSTER_WINDOW, wall=START) == 1


def test_who_founds_a_cluster_sees_nothing_of_what_was_there_without_a_key(
    gate: Gate, store: Store
) -> None:
    put(store, "a")
    record(store, event(cluster_id="a", detail="of another's"))
    gate.admit_new("a", KEY, ASKER)
    assert store.listing("a").leases == ()
    assert [each.event for each in store.audit("a", limit=10)] == ["key-set"]
    assert store.clusters_with_expired() == []
