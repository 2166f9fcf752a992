"""Who may try keys: wrong ones count for their source, right ones are good whatever others do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stun_server.gate import Gate
from stun_server.keys import hash_of
from stun_server.problems import KeyRefused, TooManyFailures
from stun_server.registry import Asker
from stun_server.store import ClusterKey, Store
from stun_server.tries import FAILURE_WINDOW, LARGEST_FAILURES, RIGHT_WINDOW, Try
from tests.stun_server.gates import ASKER, KEY, OTHER_KEY, WRONG_KEY, Asked, fail
from tests.stun_server.store_steps import set_keys
from tests.stun_server.timed_stores import START, TimedStore


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


def test_windows_side_by_side_take_twice_as_many_wrong_keys(gate: Gate, timed: TimedStore) -> None:
    timed.wall.at += FAILURE_WINDOW - 0.1
    fail(gate, ASKER.source)
    timed.wall.at += 0.1
    fail(gate, ASKER.source)  # as the documentation says
    with pytest.raises(TooManyFailures):
        gate.admit("a", WRONG_KEY, ASKER)


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


# Right keys.


def test_a_right_key_of_before_is_good_while_its_source_is_refused(gate: Gate) -> None:
    gate.admit_new("a", KEY, ASKER)
    fail(gate, ASKER.source)
    with pytest.raises(TooManyFailures):
        gate.admit("a", WRONG_KEY, ASKER)
    assert gate.admit("a", KEY, ASKER)
    assert gate.clusters_of(KEY, ASKER) == ["a"]


def test_a_right_key_of_before_is_good_in_every_process_and_after_a_restart(
    gate_of: Callable[..., Gate],
) -> None:
    first = gate_of()
    first.admit_new("a", KEY, ASKER)
    first.admit_new("b", OTHER_KEY, Asker("192.0.2.2"))
    fail(first, ASKER.source)
    fail(first, "192.0.2.3")
    for started in (gate_of(), gate_of()):
        assert started.admit("a", KEY, ASKER)
        assert started.admit_new("a", KEY, ASKER)
        assert started.clusters_of(KEY, ASKER) == ["a"]
        for cluster_id, key, source in (
            ("b", OTHER_KEY, ASKER.source),  # right, but never from there
            ("a", OTHER_KEY, ASKER.source),
            ("b", KEY, ASKER.source),
            ("a", KEY, "192.0.2.3"),
        ):
            with pytest.raises(TooManyFailures):
                started.admit(cluster_id, key, Asker(source))


def test_that_a_key_was_right_is_forgotten_when_it_is_not_used(
    gate_of: Callable[..., Gate], timed: TimedStore
) -> None:
    used = gate_of()
    used.admit_new("a", KEY, ASKER)
    used.admit_new("b", KEY, ASKER)
    timed.wall.at += RIGHT_WINDOW
    fail(used, ASKER.source)
    for cluster_id in ("a", "b"):
        gate_of().admit(cluster_id, KEY, ASKER)
    used.admit("a", KEY, ASKER)  # it tells the store anew
    timed.wall.at += 2 * RIGHT_WINDOW - FAILURE_WINDOW
    fail(used, ASKER.source)
    gate_of().admit("a", KEY, ASKER)
    timed.wall.at += 2 * RIGHT_WINDOW
    fail(used, ASKER.source)
    with pytest.raises(TooManyFailures):
        gate_of().admit("b", KEY, ASKER)


def test_what_the_store_is_told_of_right_keys_tells_none() -> None:
    bucket = Try("192.0.2.1", hash_of(KEY), "a").bucket
    assert len(bucket) == len("right:") + 32
    assert not [each for each in ("192.0.2.1", hash_of(KEY), KEY) if each in bucket]


# What the store is asked.


def test_a_flood_of_wrong_keys_writes_nothing_more(asked: Asked, gate: Gate) -> None:
    for _ in range(5 * LARGEST_FAILURES):
        with pytest.raises((KeyRefused, TooManyFailures)):
            gate.admit("a", WRONG_KEY, ASKER)
    assert asked.calls.count("count") == asked.calls.count("keys") == LARGEST_FAILURES


def test_a_key_that_was_right_costs_one_look_at_the_keys(
    asked: Asked, gate_of: Callable[..., Gate]
) -> None:
    first, second = gate_of(), gate_of()
    first.admit_new("a", KEY, ASKER)
    for gate in (first, second):
        gate.admit("a", KEY, ASKER)
        asked.calls.clear()
        for _ in range(3):
            gate.admit("a", KEY, ASKER)
        assert asked.calls == ["keys"] * 3


def test_that_a_key_was_right_is_written_once_a_window(
    asked: Asked, gate_of: Callable[..., Gate], timed: TimedStore
) -> None:
    gates = gate_of(), gate_of()
    gates[0].admit_new("a", KEY, ASKER)
    asked.calls.clear()
    for _ in range(2):
        for gate in gates:
            gate.admit("a", KEY, ASKER)
            gate.clusters_of(KEY, ASKER)
    assert "count" not in asked.calls
    timed.wall.at += RIGHT_WINDOW
    for _ in range(2):
        for gate in gates:
            gate.admit("a", KEY, ASKER)
    assert asked.calls.count("count") == 2  # of the cluster, and of all that the key opens


def test_the_store_is_asked_the_same_whichever_clusters_there_are(
    asked: Asked, gate_of: Callable[..., Gate]
) -> None:
    gate_of().admit_new("kept", KEY, Asker("192.0.2.9"))
    gate = gate_of(cluster_keys={"configured": (KEY,)}, is_open=False)
    told = set()
    for number, cluster_id in enumerate(("kept", "configured", "missing")):
        source = Asker(f"192.0.2.{number}")
        for admit in (gate.admit, gate.admit_new):
            asked.calls.clear()
            with pytest.raises(KeyRefused):
                admit(cluster_id, WRONG_KEY, source)
            told.add(tuple(asked.calls))
    assert len(told) == 1


def test_a_source_that_is_refused_looks_nothing_up(
    asked: Asked, gate_of: Callable[..., Gate]
) -> None:
    gate = gate_of(cluster_keys={"configured": (KEY,)})
    fail(gate, ASKER.source)
    asked.calls.clear()
    for cluster_id in ("configured", "missing"):
        for admit in (gate.admit, gate.admit_new):
            with pytest.raises(TooManyFailures):
                admit(cluster_id, KEY, ASKER)
    with pytest.raises(TooManyFailures):
        gate.clusters_of(KEY, ASKER)
    assert set(asked.calls) == {"count_of"}


def test_a_right_key_is_right_where_nothing_can_be_written(
    asked: Asked, gate: Gate, store: Store
) -> None:
    set_keys(store, "a", ClusterKey(hash_of(KEY), START))
    asked.is_read_only = True
    for _ in range(2):
        gate.admit("a", KEY, ASKER)
    assert asked.calls.count("count") == 1
