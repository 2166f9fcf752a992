"""The server was away: no lease ends of what nobody could renew, whoever comes first after it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from stun_server.problems import NotRegistered
from stun_server.registry import Asker, Registration, Registry
from stun_server.settings import RegistrySettings
from stun_server.store import Renewal, Store, open_store
from tests.stun_server.asking import ask, listed, register
from tests.stun_server.redis_server import PROGRAM, WHY_SKIPPED, RedisServer
from tests.stun_server.servers import running_server
from tests.stun_server.store_steps import SILENCE, TTL, ends, put, resume
from tests.stun_server.timed_stores import START, TimedSqlite, TimedStore

FROZEN = 9.0  # seconds
TTL_OF_FROZEN = "6"
WAITING = 16  # requests that the workers find when they go on


def registry_of(store: Store) -> Registry:
    # An operator's cluster: the store needs no key.
    settings = RegistrySettings(instance_timeout=TTL, cluster_keys={"a": ("any-key",)})
    return Registry(store, settings)


def renew(store: Store, cluster_id: str = "a", instance_id: str = "0") -> Renewal:
    return store.renew(cluster_id, instance_id, "run-1", ttl=TTL, wall=START)


def ids(registry: Registry, cluster_id: str = "a") -> list[str]:
    return [lease.instance_id for lease in registry.listing(cluster_id).leases]


def heartbeat(registry: Registry) -> None:
    registry.heartbeat("a", "0", "run-1")


def register_another(registry: Registry) -> None:
    registration = Registration("1", "run-1", "10.0.0.2", 8189, "FOLLOWER")
    registry.register("a", registration, Asker())


def remove_another(registry: Registry) -> None:
    with pytest.raises(NotRegistered):
        registry.remove("a", "2", Asker())


FIRST = [ids, heartbeat, register_another, remove_another, Registry.expire_all]


# Signs of life.


def test_after_an_absence_living_leases_get_one_fresh_time(timed: TimedStore, store: Store) -> None:
    assert resume(store) == 0
    put(store, "a", "living", left=30.0)
    put(store, "b", "living", left=1.0)
    put(store, "a", "over", left=-5.0)
    timed.pass_time(1000.0)
    assert resume(timed.opened()) == 2
    assert ends(store) == {"living": 60, "over": pytest.approx(-1005, abs=1)}
    assert ends(store, "b") == {"living": 60}
    timed.pass_time(1.0)
    assert resume(timed.opened()) == 0  # each worker asks, and there was one absence
    assert ends(store)["living"] == 59


def test_a_server_that_lives_prolongs_nothing(timed: TimedStore, store: Store) -> None:
    assert resume(store) == 0
    put(store, "a")
    for _ in range(4):
        timed.pass_time(SILENCE - 1)
        assert resume(store) == 0
    assert ends(store) == {"0": TTL - 4 * (SILENCE - 1)}


def test_the_first_start_of_all_prolongs_nothing(store: Store) -> None:
    put(store, "a", left=20.0)
    assert resume(store) == 0
    assert ends(store) == {"0": 20}


def test_signs_of_life_of_many_at_once_prolong_nothing(
    store_url: str, at_once: Callable[..., list[int]]
) -> None:
    stores = [open_store(store_url) for _ in range(2)]  # as two processes
    resume(stores[0])
    put(stores[0], "a", left=30.0)

    def look() -> int:
        return sum(resume(store) for store in stores)

    assert sum(at_once(look, threads=8, times=20)) == 0
    assert ends(stores[0]) == {"0": pytest.approx(30, abs=3)}
    for store in stores:
        store.close()


def test_a_reboot_counts_as_an_absence(tmp_path: Path) -> None:
    timed = TimedSqlite(tmp_path / "registry.sqlite3")
    store = timed.opened()
    resume(store)
    put(store, "a", "living", left=3.0)
    put(store, "a", "over", left=-5.0)
    timed.boot_id, timed.clock.at = "boot-2", 12.0  # the clock starts anew
    assert resume(timed.opened()) == 1
    assert ends(store)["living"] == TTL
    assert ends(store)["over"] <= 0
    assert store.clusters_with_expired() == ["a"]


def test_a_clock_that_went_back_counts_as_a_reboot(tmp_path: Path) -> None:
    timed = TimedSqlite(tmp_path / "registry.sqlite3")
    timed.boot_id = ""  # a system that has none
    store = timed.opened()
    resume(store)
    put(store, "a", left=3.0)
    timed.clock.at = 12.0
    assert resume(store) == 1
    assert ends(store) == {"0": TTL}


# The first request comes before the next sign of life.


@pytest.mark.parametrize("first", FIRST, ids=lambda each: each.__name__)
@pytest.mark.parametrize("jump", [1000.0, -1000.0], ids=["forward", "back"])
def test_the_first_request_after_an_absence_ends_no_lease(
    timed: TimedStore, store: Store, first: Callable[[Registry], object], jump: float
) -> None:
    """As where the workers stood still, Redis was down, or its machine's clock was set."""
    resume(store)
    put(store, "a", left=30.0)
    put(store, "b", left=30.0)
    put(store, "b", "over", left=-5.0)
    timed.pass_time(jump)
    registry = registry_of(timed.opened())  # of a worker that said nothing yet
    first(registry)
    resume(store)
    assert "0" in ids(registry)
    assert ids(registry, "b") == ["0"]
    assert 0 < ends(store)["0"] <= TTL
    assert renew(store, "b") is Renewal.RENEWED


def test_an_absence_is_met_once(timed: TimedStore, store: Store) -> None:
    resume(store)
    put(store, "a", left=30.0)
    timed.pass_time(1000.0)
    assert renew(store) is Renewal.RENEWED
    assert resume(store) == 0
    timed.pass_time(TTL + 1)  # one more, in which nobody was there
    assert renew(store) is Renewal.RENEWED
    for _ in range(7):
        timed.pass_time(SILENCE - 1)
        assert resume(store) == 0
    assert renew(store) is Renewal.MISSING


def test_a_worker_that_stood_still_while_another_lived_was_no_absence(
    timed: TimedStore, store: Store
) -> None:
    frozen, living = registry_of(store), timed.opened()
    resume(store)
    put(store, "a", left=30.0)
    for _ in range(4):
        timed.pass_time(SILENCE - 1)
        resume(living)
    assert renew(store) is Renewal.MISSING
    assert ids(frozen) == []


def test_a_lease_is_not_late_for_what_the_server_missed(timed: TimedStore, store: Store) -> None:
    resume(store)
    registry = registry_of(store)
    register_another(registry)
    timed.pass_time(TTL - 5)  # it lasts, but no heartbeat got through for long
    put(timed.opened(), "b")
    lease = store.listing("a").leases[0]
    assert not registry.is_late(lease, store.listing("a").now)


def test_a_store_whose_server_never_spoke_ends_leases_by_their_time(
    timed: TimedStore, store: Store
) -> None:
    put(store, "a", left=30.0)
    timed.pass_time(31.0)
    assert renew(store) is Renewal.MISSING
    assert ids(registry_of(store)) == []


# For real.


@pytest.mark.integration
def test_leases_outlast_workers_that_stood_still(store_url: str, tmp_path: Path) -> None:
    settings = {"STUN_INSTANCE_TIMEOUT": TTL_OF_FROZEN, "STUN_STORE": store_url}
    with running_server(tmp_path, **settings) as server:
        for instance_id in ("0", "1"):
            assert register(server.url, "c", instance_id).status_code == 200
        workers = psutil.Process(server.process.pid).children()
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        with ThreadPoolExecutor(WAITING) as pool:
            beats = [
                pool.submit(ask, "POST", f"{server.url}/heartbeat/c/0") for _ in range(WAITING)
            ]
            time.sleep(FROZEN)
            for worker in workers:
                os.kill(worker.pid, signal.SIGCONT)
            assert [beat.result().status_code for beat in beats] == [200] * WAITING
        assert listed(server.url, "c") == ["0", "1"]


@pytest.mark.integration
def test_leases_outlast_a_redis_that_was_down(tmp_path: Path) -> None:
    if PROGRAM is None:
        pytest.skip(WHY_SKIPPED)
    redis_server = RedisServer.start(tmp_path, is_durable=True)
    try:
        settings = {"STUN_INSTANCE_TIMEOUT": "3", "STUN_STORE": redis_server.url}
        with running_server(tmp_path, **settings) as server:
            assert register(server.url, "c", "0").status_code == 200
            redis_server.stop()
            time.sleep(4.0)
            redis_server.start_again()
            assert listed(server.url, "c") == ["0"]
            assert ask("POST", f"{server.url}/heartbeat/c/0").status_code == 200
    finally:
        redis_server.stop()
