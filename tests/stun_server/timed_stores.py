"""Both stores with a time that passes as a test says.

SQLite's store takes its clocks as arguments. Redis has its own clock, which nobody can set: there
all kept times are moved back instead, which is the same to see from inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from stun_server.store import Store
from stun_server.store.redis import PREFIX, RedisStore
from stun_server.store.sqlite import SqliteStore

START = 1_800_000_000.0  # Unix time that tests begin at
SINCE_BOOT = 5_000.0  # seconds


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


class TimedStore(Protocol):
    """One store and its time."""

    wall: Clock

    def opened(self) -> Store:
        """Another process's view of the same data."""

    def pass_time(self, seconds: float) -> None:
        """For the store and for the wall clock."""

    def close(self) -> None: ...


class TimedSqlite:
    """A TimedStore in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wall = Clock(START)
        self.clock = Clock(SINCE_BOOT)
        self.boot_id = "boot-1"
        self._opened: list[Store] = []

    def opened(self) -> SqliteStore:
        store = SqliteStore(
            self.path, clock=self.clock, wall=self.wall, boot_id=lambda: self.boot_id
        )
        self._opened.append(store)
        return store

    def pass_time(self, seconds: float) -> None:
        self.clock.at += seconds
        self.wall.at += seconds

    def close(self) -> None:
        for store in self._opened:
            store.close()


class TimedRedis:
    """A TimedStore in a Redis of the test's own, which `client` speaks to as well."""

    def __init__(self, url: str, client: Any) -> None:
        self.url = url
        self.wall = Clock(START)
        self._client = client
        self._opened: list[Store] = []

    def opened(self) -> RedisStore:
        store = RedisStore(self.url, wall=self.wall)
        self._opened.append(store)
        return store

    def pass_time(self, seconds: float) -> None:
        for key in self._client.keys(f"{PREFIX}expiry:*"):
            for instance_id in self._client.zrange(key, 0, -1):
                self._client.zincrby(key, -seconds, instance_id)
        alive_at = self._client.get(f"{PREFIX}alive-at")
        if alive_at is not None:
            self._client.set(f"{PREFIX}alive-at", repr(float(alive_at) - seconds))
        self.wall.at += seconds

    def close(self) -> None:
        for store in self._opened:
            store.close()
        self._client.close()
