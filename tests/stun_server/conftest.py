"""Fixtures of the registry's tests: both stores, and gates."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from stun_server.gate import Gate
from stun_server.settings import RegistrySettings
from stun_server.store import AuditEvent, Store
from tests.stun_server.gates import Asked
from tests.stun_server.redis_server import PROGRAM, WHY_SKIPPED, RedisServer
from tests.stun_server.timed_stores import TimedRedis, TimedSqlite, TimedStore

STORES = ["sqlite", "redis"]
T = TypeVar("T")


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One for all tests, which leave it running; `redis_server` empties it for each."""
    if PROGRAM is None:
        pytest.skip(WHY_SKIPPED)
    server = RedisServer.start(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A redis-server that keeps nothing yet."""
    shared_redis.empty()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One for this test alone, which may end it."""
    if PROGRAM is None:
        pytest.skip(WHY_SKIPPED)
    server = RedisServer.start(tmp_path)
    yield server
    server.stop()


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """STUN_STORE of an empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.sqlite3"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


@pytest.fixture(params=STORES)
def timed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TimedStore]:
    """An empty store of each kind, whose time passes as the test says."""
    timed: TimedStore
    if request.param == "sqlite":
        timed = TimedSqlite(tmp_path / "registry.sqlite3")
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        timed = TimedRedis(server.url, server.client())
    yield timed
    timed.close()


@pytest.fixture
def store(timed: TimedStore) -> Store:
    """That store."""
    return timed.opened()


@pytest.fixture
def asked(store: Store) -> Asked:
    """The store as gates have it."""
    return Asked(store)


@pytest.fixture
def gate_of(timed: TimedStore, asked: Any) -> Callable[..., Gate]:
    """Gates of several processes with one store; their settings are the arguments."""

    def make(on_event: Callable[[AuditEvent], None] = lambda event: None, **given: Any) -> Gate:
        return Gate(asked, RegistrySettings(**given), wall=timed.wall, on_event=on_event)

    return make


@pytest.fixture
def gate(gate_of: Callable[..., Gate]) -> Gate:
    """One that is open for new clusters."""
    return gate_of()


@pytest.fixture
def at_once() -> Callable[..., list[object]]:
    """`at_once(work, threads=8, times=10)`: what each of the calls returned, from all threads."""

    def run(work: Callable[[], T], *, threads: int, times: int) -> list[T]:
        start = threading.Barrier(threads)

        def repeat() -> list[T]:
            start.wait(timeout=30.0)
            return [work() for _ in range(times)]

        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(repeat) for _ in range(threads)]
            return [result for each in running for result in each.result(timeout=60.0)]

    return run
