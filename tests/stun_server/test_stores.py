"""What the registry relies on, of both stores; Redis' is a real redis-server's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from stun_server.store import (
    ClusterKey,
    ClusterView,
    Founding,
    FoundingLimits,
    Lease,
    Renewal,
    Store,
)
from stun_server.store.base import AUDIT_PER_CLUSTER
from stun_server.store.redis import RedisStore
from tests.stun_server.redis_server import RedisServer
from tests.stun_server.store_steps import (
    CANDIDATES,
    TTL,
    ends,
    event,
    key,
    lease,
    put,
    record,
    resume,
    set_keys,
)
from tests.stun_server.timed_stores import START, TimedSqlite, TimedStore

# Steps on a cluster.


def test_a_cluster_that_nobody_registered_is_empty(store: Store) -> None:
    listing = store.listing("a")
    assert (listing.revision, listing.leases) == (0, ())
    assert listing.epoch
    assert store.revisions(["a", "b"]) == {"a": 0, "b": 0}
    assert store.revisions([]) == {}


def test_a_lease_is_kept_as_it_was_given(store: Store) -> None:
    given = {"candidates": CANDIDATES, "replaced": ("run-0", "run-00"), "role": "Follower"}
    added = put(store, "a", "worker.7_x-y", address="fd00::2", port=65_535, **given)
    assert store.listing("a").leases == (added,)


def test_a_step_sees_what_it_wrote_and_its_result_comes_back(store: Store) -> None:
    put(store, "a", "0")
    put(store, "a", "1")

    def step(view: ClusterView) -> list[str]:
        view.put(lease(view, "2"))
        view.delete("0")
        view.put(view.leases()["1"]._replace(port=1))
        view.bump()
        return sorted(f"{each.instance_id}:{each.port}" for each in view.leases().values())

    assert store.update("a", step) == ["1:1", "2:8189"]
    assert sorted(each.instance_id for each in store.listing("a").leases) == ["1", "2"]


def test_a_step_that_raises_has_done_nothing(store: Store) -> None:
    put(store, "a")
    before = store.listing("a")
    generations = []

    def fails(view: ClusterView) -> None:
        view.put(lease(view, "1"))
        view.delete("0")
        view.bump()
        view.record(event())
        generations.append(view.next_generation())
        raise LookupError("the step's own")

    with pytest.raises(LookupError, match="the step's own"):
        store.update("a", fails)
    after = store.listing("a")
    assert (after.revision, after.leases) == (before.revision, before.leases)
    assert store.audit("a", limit=10) == []
    assert put(store, "a", "2").generation <= generations[0]  # that one was given to nobody


def test_revisions_and_generations_only_rise(store: Store) -> None:
    seen = []
    for number in range(3):
        added = put(store, "a", str(number))
        seen.append((store.listing("a").revision, added.generation))
        assert store.revisions(["a"]) == {"a": seen[-1][0]}
    assert seen == sorted(set(seen))
    assert len({generation for _, generation in seen}) == 3


def test_a_step_that_changes_no_revision_wakes_nobody(store: Store) -> None:
    put(store, "a")
    before = store.listing("a").revision
    store.update("a", lambda view: view.put(view.leases()["0"]._replace(last_ping_at=START + 1)))
    listing = store.listing("a")
    assert (listing.revision, listing.leases[0].last_ping_at) == (before, START + 1)


def test_clusters_do_not_touch_each_other(store: Store) -> None:
    kept = put(store, "a")
    before = store.listing("a").revision
    put(store, "a.b", "0", port=1)
    store.update("b", lambda view: view.delete("0"))
    listing = store.listing("a")
    assert (listing.leases, listing.revision) == ((kept,), before)


def test_another_process_sees_the_same(timed: TimedStore, store: Store) -> None:
    added = put(store, "a")
    other = timed.opened()
    assert other.listing("a").leases == (added,)
    assert other.listing("a").epoch == store.listing("a").epoch
    put(other, "a", "1")
    assert store.revisions(["a"]) == other.revisions(["a"])


# Heartbeats and the end of leases.


def test_a_heartbeat_moves_the_end_and_nothing_that_others_wait_for(
    timed: TimedStore, store: Store
) -> None:
    put(store, "a")
    before = store.listing("a")
    timed.pass_time(TTL / 2)
    assert store.renew("a", "0", "run-1", ttl=TTL, wall=START + 30.5) is Renewal.RENEWED
    after = store.listing("a")
    assert after.revision == before.revision
    renewed = after.leases[0]
    assert renewed.last_ping_at == START + 30.5
    assert TTL - 5 < renewed.expires_at - after.now <= TTL
    assert replace_times(renewed) == replace_times(before.leases[0])


def replace_times(lease: Lease) -> Lease:
    return lease._replace(last_ping_at=0.0, expires_at=0.0)


def test_a_heartbeat_without_a_run_renews_whichever_has_the_lease(store: Store) -> None:
    put(store, "a")
    assert store.renew("a", "0", None, ttl=TTL, wall=START) is Renewal.RENEWED


def test_a_heartbeat_tells_why_it_renews_nothing(timed: TimedStore, store: Store) -> None:
    put(store, "a")
    put(store, "b", "1")
    beat = {"ttl": TTL, "wall": START + 1}
    assert store.renew("a", "0", "run-2", **beat) is Renewal.REPLACED
    assert store.renew("a", "1", None, **beat) is Renewal.MISSING
    assert store.renew("c", "0", None, **beat) is Renewal.MISSING
    timed.pass_time(TTL + 1)
    assert store.renew("a", "0", None, **beat) is Renewal.MISSING
    assert store.renew("a", "0", "run-1", **beat) is Renewal.MISSING
    assert store.renew("a", "0", "run-2", **beat) is Renewal.MISSING
    assert store.listing("a").leases[0].last_ping_at == START


def test_leases_that_are_over_stay_until_they_are_removed(timed: TimedStore, store: Store) -> None:
    put(store, "a", "short", left=5.0)
    put(store, "a", "long")
    put(store, "b")
    assert store.clusters_with_expired() == []
    timed.pass_time(6.0)
    listing = store.listing("a")
    ended = {each.instance_id: each.expires_at <= listing.now for each in listing.leases}
    assert ended == {"short": True, "long": False}
    assert store.clusters_with_expired() == ["a"]
    assert store.update("a", lambda view: view.leases()["short"].expires_at <= view.now)
    store.update("a", lambda view: view.delete("short"))
    assert store.clusters_with_expired() == []


def test_an_added_lease_takes_the_place_of_one_that_is_over(
    timed: TimedStore, store: Store
) -> None:
    put(store, "a")
    timed.pass_time(TTL + 1)
    again = put(store, "a", boot_id="run-2")
    assert store.listing("a").leases == (again,)
    assert store.clusters_with_expired() == []


# Keys.


def test_keys_are_kept_newest_first(store: Store) -> None:
    keys = key("2", START + 2, is_operators=True), key("1", START, expires_at=START + 3600.5)
    set_keys(store, "a", *reversed(keys))
    assert store.keys("a") == keys
    assert store.keys("b") == ()


def test_a_change_of_keys_gets_those_that_there_are_and_is_recorded(store: Store) -> None:
    set_keys(store, "a", key("1"))
    given = []

    def change(held: tuple[ClusterKey, ...]) -> tuple[ClusterKey, ...]:
        given.append(held)
        return (key("2", START + 1), *held)

    changed = event("key-rotate", key_fingerprint="abcd")
    assert store.change_keys("a", change, changed) == (key("2", START + 1), key("1"))
    assert given == [(key("1"),)]
    assert store.audit("a", limit=1) == [changed]


def test_keys_that_stay_as_they_are_are_no_event(store: Store) -> None:
    set_keys(store, "a", key("1"))
    before = store.audit("a", limit=10)
    assert store.change_keys("a", lambda held: held, event("key-set")) == (key("1"),)
    assert store.audit("a", limit=10) == before


def test_a_step_sees_the_keys_of_its_cluster(store: Store) -> None:
    set_keys(store, "a", key("1"), key("2", START + 1))
    set_keys(store, "b", key("3"))
    assert store.update("a", lambda view: view.keys()) == store.keys("a")
    assert store.update("c", lambda view: view.keys()) == ()


def test_a_step_during_which_redis_loses_the_last_key_is_run_again(
    redis_server: RedisServer,
) -> None:
    store, other = RedisStore(redis_server.url), RedisStore(redis_server.url)
    set_keys(store, "a", key("1"))
    seen = []

    def step(view: ClusterView) -> None:
        seen.append(view.keys())
        if len(seen) == 1:
            set_keys(other, "a")
        if view.keys():
            view.put(lease(view))

    store.update("a", step)
    assert seen == [(key("1"),), ()]
    assert store.listing("a").leases == ()
    store.close()
    other.close()


def test_a_change_of_keys_that_raises_has_done_nothing(store: Store) -> None:
    set_keys(store, "a", key("1"))

    def fails(held: tuple[ClusterKey, ...]) -> tuple[ClusterKey, ...]:
        raise LookupError("no such key")

    with pytest.raises(LookupError):
        store.change_keys("a", fails, event("key-remove"))
    assert store.keys("a") == (key("1"),)
    assert [each.event for each in store.audit("a", limit=10)] == ["key-set"]


def test_keys_that_have_ended_are_left_out_of_the_next_change(
    timed: TimedStore, store: Store
) -> None:
    ending = key("1", expires_at=START + 10)
    set_keys(store, "a", key("2"), ending)
    timed.wall.at = START + 10
    assert store.change_keys("a", lambda held: held, event()) == (key("2"),)
    assert store.keys("a") == (ending, key("2"))  # no change, no event
    set_keys(store, "a", key("3"), ending)
    assert store.keys("a") == (key("3"),)
    assert store.clusters_with_key(ending.key_hash) == []
    assert store.change_keys("a", lambda held: (ending,), event("key-remove")) == ()
    assert (store.keys("a"), store.audit("a", limit=10)) == ((), [])  # so none is left


def test_a_first_key_is_for_a_cluster_that_never_had_one(timed: TimedStore, store: Store) -> None:
    limits = FoundingLimits(clusters=3, bucket="new:x", tries=4, window=60.0)

    def found(cluster_id: str, digit: str = "1") -> Founding:
        added = key(digit, timed.wall())
        return store.found(cluster_id, added, event("key-set", cluster_id), limits)

    set_keys(store, "ended", key("9", expires_at=START + 1))
    timed.wall.at = START + 1
    assert found("ended") is Founding.HELD
    assert [found("a"), found("a", "2"), found("b")] == [
        *(Founding.DONE, Founding.HELD, Founding.DONE)
    ]
    assert store.keys("a") == (key("1", START + 1),)
    assert store.audit("a", limit=10) == [event("key-set")]
    assert store.clusters_with_key(key("1").key_hash) == ["a", "b"]
    assert store.totals().clusters == 3
    assert [found("c") for _ in range(3)] == [*[Founding.FULL] * 2, Founding.TOO_MANY]
    assert store.keys("c") == ()
    assert store.count_of("new:x", window=60.0, wall=START) == 4
    timed.wall.at = START + 60
    assert store.count_of("new:x", window=60.0, wall=timed.wall()) == 0
    assert found("c") is Founding.FULL


def test_clusters_are_found_by_their_keys(store: Store) -> None:
    set_keys(store, "b", key("1"))
    set_keys(store, "a", key("1"), key("2"))
    assert store.clusters_with_key(key("1").key_hash) == ["a", "b"]
    assert store.clusters_with_key(key("2").key_hash) == ["a"]
    set_keys(store, "a", key("2"))
    assert store.clusters_with_key(key("1").key_hash) == ["b"]
    set_keys(store, "b")
    assert store.clusters_with_key(key("1").key_hash) == []
    assert store.keys("b") == ()


def test_an_idle_cluster_is_forgotten_with_all_that_it_had(timed: TimedStore, store: Store) -> None:
    set_keys(store, "idle", key("1"))
    put(store, "idle")
    record(store, event(cluster_id="idle", source="203.0.113.9"))
    before = store.listing("idle")
    assert store.forget_idle(before=START + 100) == []  # it has a lease
    store.update("idle", lambda view: view.delete("0"))
    assert store.forget_idle(before=START) == []  # it was changed since
    assert store.forget_idle(before=START + 100) == ["idle"]
    assert store.keys("idle") == ()
    assert store.clusters_with_key(key("1").key_hash) == []
    assert store.audit("idle", limit=10) == []  # whoever takes the id next is somebody else
    assert store.forget_idle(before=START + 100) == []
    timed.wall.at += 100.0
    again = put(store, "idle")
    assert store.listing("idle").revision > before.revision
    assert again.generation > before.leases[0].generation


def test_with_the_last_key_goes_all_that_the_cluster_had(store: Store) -> None:
    for cluster_id in ("a", "b"):
        set_keys(store, cluster_id, key("1"), key("2"))
        put(store, cluster_id)
    before = store.listing("a")
    set_keys(store, "a", key("2"))
    assert store.listing("a").leases == before.leases
    set_keys(store, "a")
    assert store.keys("a") == ()
    assert store.listing("a").leases == ()
    assert store.audit("a", limit=10) == []
    assert store.clusters_with_expired() == []
    assert len(store.listing("b").leases) == len(store.audit("b", limit=10)) == 1
    again = put(store, "a")
    assert store.listing("a").leases == (again,)
    assert again.generation >= before.leases[0].generation


def test_clusters_with_an_operators_key_are_never_forgotten(store: Store) -> None:
    set_keys(store, "both", key("1"), key("2", is_operators=True))
    set_keys(store, "theirs", key("3"))
    assert store.forget_idle(before=START + 100) == ["theirs"]
    assert len(store.keys("both")) == 2


def test_an_operators_key_keeps_a_cluster_until_its_end_is_long_ago(
    timed: TimedStore, store: Store
) -> None:
    set_keys(store, "a", key("1", is_operators=True, expires_at=START + 50))
    assert store.forget_idle(before=START + 50) == []
    timed.wall.at = START + 200
    assert store.forget_idle(before=START + 51) == ["a"]


def test_the_latest_of_key_and_change_counts_for_idleness(timed: TimedStore, store: Store) -> None:
    set_keys(store, "rotated", key("1"), key("2", START + 50))
    set_keys(store, "changed", key("3"))
    timed.wall.at = START + 50
    put(store, "changed")
    store.update("changed", lambda view: view.delete("0"))
    assert store.forget_idle(before=START + 50) == []
    assert sorted(store.forget_idle(before=START + 51)) == ["changed", "rotated"]


# Counts, audit, totals.


def test_counts_are_of_one_bucket_and_one_window(store: Store) -> None:
    assert [store.count("a", window=10.0, wall=START + at) for at in (0.0, 5.0, 9.9)] == [1, 2, 3]
    assert store.count_of("a", window=10.0, wall=START + 1) == 3
    assert store.count("a", window=10.0, wall=START + 10) == 1
    assert store.count("b", window=10.0, wall=START) == 1
    assert store.count_of("c", window=10.0, wall=START) == 0
    assert store.count_of("a", window=10.0, wall=START + 20) == 0


def test_the_audit_log_tells_the_newest_first_of_one_cluster(store: Store) -> None:
    told = [
        event(
            "register", instance_id="0", source="10.0.0.1", request_id="r1", detail="\u00e9 \u2028"
        ),
        event("replace", key_fingerprint="12345678", at=START + 0.25),
        event("remove", at=START + 2),
    ]
    record(store, *told[:2])
    record(store, event("register", "b"))
    record(store, told[2])
    assert store.audit("a", limit=10) == told[::-1]
    assert store.audit("a", limit=2) == told[:0:-1]
    assert store.audit("nothing", limit=10) == []


def test_old_events_are_dropped(store: Store) -> None:
    at = store.now() if store.now() > START / 2 else START  # Redis stamps events itself
    record(store, event(at=at), event("remove", at=at))
    store.prune_audit(before=at - 1000)
    assert len(store.audit("a", limit=10)) == 2
    store.prune_audit(before=math.ceil(at) + 1000)
    assert store.audit("a", limit=10) == []


def test_no_cluster_fills_the_store_with_events(store: Store) -> None:
    record(store, event(cluster_id="b", detail="kept"))
    for number in range(12):
        record(store, *(event(detail=f"{number}.{part}") for part in range(1000)))
    kept = store.audit("a", limit=20_000)
    assert AUDIT_PER_CLUSTER <= len(kept) < AUDIT_PER_CLUSTER + 500
    assert kept[0].detail == "11.999"
    assert [each.detail for each in store.audit("b", limit=10)] == ["kept"]


def test_totals_are_of_clusters_with_a_key_and_leases_that_last(
    timed: TimedStore, store: Store
) -> None:
    assert (store.totals().clusters, store.totals().leases) == (0, 0)
    set_keys(store, "a", key("1"), key("2"))
    set_keys(store, "b", key("1"))
    put(store, "a", "0")
    put(store, "a", "1", left=5.0)
    put(store, "without-key", "0")
    assert (store.totals().clusters, store.totals().leases) == (2, 3)
    timed.pass_time(6.0)
    assert (store.totals().clusters, store.totals().leases) == (2, 2)


# Clocks.


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_setting_the_time_moves_no_lease(tmp_path: Path, jump: float) -> None:
    timed = TimedSqlite(tmp_path / "registry.sqlite3")
    store = timed.opened()
    resume(store)
    put(store, "a")
    revision = store.listing("a").revision
    timed.wall.at += jump
    assert resume(store) == 0
    assert ends(store) == {"0": TTL}
    assert store.renew("a", "0", "run-1", ttl=TTL, wall=timed.wall.at) is Renewal.RENEWED
    put(store, "a", "1")
    assert store.listing("a").revision > revision
    timed.close()


def test_another_store_is_told_by_its_epoch(tmp_path: Path) -> None:
    first, second = (TimedSqlite(tmp_path / name).opened() for name in ("1", "2"))
    assert first.listing("a").epoch != second.listing("a").epoch
    first.close()
    second.close()
