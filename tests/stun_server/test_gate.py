"""Who may see and change a cluster: keys, and limits on those who try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stun_server.gate import (
    FAILURE_WINDOW,
    LARGEST_FAILURES,
    LARGEST_NEW_CLUSTERS,
    NEW_CLUSTER_WINDOW,
    Gate,
)
from stun_server.keys import fingerprint, hash_of
from stun_server.problems import ClusterFull, InvalidRequest, KeyRefused, TooManyFailures
from stun_server.registry import Asker
from stun_server.settings import RegistrySettings
from stun_server.store import AuditEvent, ClusterKey, Store
from tests.stun_server.timed_stores import START, TimedStore

KEY, OTHER_KEY, WRONG_KEY = (f"{name}-{'k' * 32}" for name in ("right", "other", "wrong"))
ASKER = Asker("192.0.2.1", request_id="request-1")


@pytest.fixture
def gate_of(timed: TimedStore, store: Store) -> Callable[..., Gate]:
    """Gates of several processes with one store; their settings are the arguments."""

    def make(on_event: Callable[[AuditEvent], None] = lambda event: None, **given: Any) -> Gate:
        return Gate(store, RegistrySettings(**given), wall=timed.wall, on_event=on_event)

    return make


@pytest.fixture
def gate(gate_of: Callable[..., Gate]) -> Gate:
    """One that is open for new clusters."""
    return gate_of()


def set_keys(store: Store, cluster_id: str, *keys: ClusterKey) -> None:
    event = AuditEvent(START, "key-add", cluster_id)
    store.change_keys(cluster_id, lambda held: keys, event)


def fail(gate: Gate, source: str, times: int = LARGEST_FAILURES) -> None:
    """Uses up what a source may fail in a window."""
    for _ in range(times):
        with pytest.raises(KeyRefused):
            gate.admit("a", WRONG_KEY, Asker(source))


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
    set_keys(store, "a", ClusterKey(hash_of(KEY), START - 10, START - 1, True))
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


# Limits.


def test_a_source_that_fails_too_often_is_refused_by_every_process(
    gate_of: Callable[..., Gate], timed: TimedStore
) -> None:
    first, second = gate_of(), gate_of()
    first.admit_new("a", KEY, Asker("192.0.2.9"))
    fail(first, ASKER.source, LARGEST_FAILURES // 2)
    fail(second, ASKER.source, LARGEST_FAILURES - LARGEST_FAILURES // 2)
    for gate in (first, second, first):
        with pytest.raises(TooManyFailures, match=r"192\.0\.2\.1 has sent") as caught:
            gate.admit("a", WRONG_KEY, ASKER)
        assert 0 < (caught.value.retry_after or 0) <= FAILURE_WINDOW
        with pytest.raises(TooManyFailures):
            gate.admit("a", KEY, ASKER)  # the right one tells nobody that it is
    second.admit("a", KEY, Asker("192.0.2.2"))
    timed.wall.at += caught.value.retry_after or 0
    assert second.admit("a", KEY, ASKER)


def test_a_right_key_of_before_is_good_while_its_source_is_refused(gate: Gate) -> None:
    gate.admit_new("a", KEY, ASKER)
    fail(gate, ASKER.source)
    with pytest.raises(TooManyFailures):
        gate.admit("a", WRONG_KEY, ASKER)
    assert gate.admit("a", KEY, ASKER)
    assert gate.clusters_of(KEY, ASKER) == ["a"]


def test_a_key_of_one_cluster_does_not_serve_to_try_another(gate: Gate) -> None:
    gate.admit_new("b", KEY, ASKER)
    for _ in range(LARGEST_FAILURES):
        with pytest.raises(KeyRefused):
            gate.admit("a", KEY, ASKER)
    with pytest.raises(TooManyFailures):
        gate.admit("a", KEY, ASKER)
    assert gate.admit("b", KEY, ASKER)


def test_a_source_that_is_refused_founds_no_cluster(gate: Gate, store: Store) -> None:
    fail(gate, ASKER.source)
    with pytest.raises(TooManyFailures):
        gate.admit("a", WRONG_KEY, ASKER)
    with pytest.raises(TooManyFailures):
        gate.admit_new("a", KEY, ASKER)
    assert store.keys("a") == ()


def test_requests_without_a_key_count_for_nothing(gate: Gate) -> None:
    gate.admit_new("a", KEY, Asker("192.0.2.9"))
    for _ in range(3 * LARGEST_FAILURES):
        with pytest.raises(KeyRefused):
            gate.admit("a", "", ASKER)
    assert gate.admit("a", KEY, ASKER)


@pytest.mark.parametrize(
    ("source", "same", "other"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"),
        ("fe80::1%eth0", "fe80::2%eth1", "fe81::1"),
        ("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2"),
        ("192.0.2.1", "192.0.2.1", "192.0.2.3"),
        ("", "", "192.0.2.1"),
        ("a unix socket", "a unix socket", "another"),
    ],
)
def test_a_source_is_an_address_or_an_ipv6_network(
    gate: Gate, source: str, same: str, other: str
) -> None:
    fail(gate, source)
    with pytest.raises(TooManyFailures):
        gate.admit("a", WRONG_KEY, Asker(source))
    with pytest.raises(TooManyFailures):
        gate.admit("a", WRONG_KEY, Asker(same))
    with pytest.raises(KeyRefused):
        gate.admit("a", WRONG_KEY, Asker(other))


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


def test_a_flood_of_wrong_keys_writes_nothing_more(
    gate_of: Callable[..., Gate], store: Store
) -> None:
    counted = Counting(store)
    gate = Gate(counted, RegistrySettings(), wall=lambda: START)
    for _ in range(5 * LARGEST_FAILURES):
        with pytest.raises((KeyRefused, TooManyFailures)):
            gate.admit("a", WRONG_KEY, ASKER)
    assert counted.writes == LARGEST_FAILURES + 1


class Counting:
    """The store, and how often something was counted in it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.writes = 0

    def count(self, bucket: str, *, window: float, wall: float) -> int:
        self.writes += 1
        return self._store.count(bucket, window=window, wall=wall)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
