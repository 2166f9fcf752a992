"""What a process remembers of lists: no more than its limit, and nothing of another state."""

from __future__ import annotations

import pytest

from stun_server.store import Lease
from stun_server.store.known import ClusterState, KnownLeases, leases_with_times

STATE = ClusterState("epoch", 1, 0.0)


def leases(count: int) -> list[Lease]:
    return [
        Lease(str(number), "run", "10.0.0.1", 8189, "FOLLOWER", number, 0.0, 0.0, 0.0)
        for number in range(count)
    ]


def is_known(known: KnownLeases, cluster_id: str, state: ClusterState = STATE) -> bool:
    return known.with_times(cluster_id, state, []) is not None


def test_leases_come_back_with_the_times_of_now() -> None:
    known = KnownLeases()
    noted = known.note("a", STATE, leases(2))
    told = known.with_times("a", STATE, [("1", 5.0, 9.0)])
    assert told == (leases(2)[1]._replace(last_ping_at=5.0, expires_at=9.0),)
    assert leases_with_times(noted, [("1", 5.0, 9.0)]) == told


def test_nothing_is_told_of_another_state_or_of_unknown_leases() -> None:
    known = KnownLeases()
    known.note("a", STATE, leases(2))
    assert not is_known(known, "a", STATE._replace(revision=2))
    assert not is_known(known, "b")
    assert known.with_times("a", STATE, [("7", 5.0, 9.0)]) is None
    with pytest.raises(KeyError):
        leases_with_times({}, [("7", 5.0, 9.0)])


def test_what_was_used_longest_ago_goes_when_there_are_too_many_leases() -> None:
    known = KnownLeases(limit=10)
    for cluster_id in ("a", "b", "c"):
        known.note(cluster_id, STATE, leases(3))
    assert is_known(known, "a")
    known.note("d", STATE, leases(5))
    assert [each for each in "abcd" if is_known(known, each)] == ["a", "d"]
    assert known.size == 8


def test_a_later_state_takes_the_place_of_the_former() -> None:
    known = KnownLeases(limit=10)
    for revision in range(5):
        known.note("a", STATE._replace(revision=revision), leases(6))
    assert known.size == 6


def test_clusters_without_leases_have_a_limit_too() -> None:
    known = KnownLeases(limit=10)
    for number in range(100):
        known.note(str(number), STATE, [])
    assert known.size == 10


def test_a_cluster_above_the_limit_is_not_remembered_and_leaves_the_others() -> None:
    known = KnownLeases(limit=10)
    known.note("a", STATE, leases(3))
    assert len(known.note("b", STATE, leases(11))) == 11
    assert [each for each in "ab" if is_known(known, each)] == ["a"]
