"""Stores that cannot be had: said at once, with the setting's name, and over when they are back."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stun_server.settings import SettingsError
from stun_server.store import ClusterView, Renewal, Store, StoreUnavailable, open_store
from stun_server.store.redis import PREFIX, TIMEOUT, RedisStore
from stun_server.store.sqlite import SqliteStore
from stun_server.store.sqlite_schema import SCHEMA_VERSION
from tests.stun_server.redis_server import RedisServer
from tests.stun_server.servers import ROOT, free_port
from tests.stun_server.store_writers import register

NOBODY = 65_534  # user id
SECRET = "not-for-any-log"


def bump(view: ClusterView) -> None:
    view.bump()


def fails(store: Store) -> str:
    """The text with which reading and writing fail."""
    texts = set()
    for use in (store.totals, lambda: store.listing("a"), lambda: store.update("a", bump)):
        with pytest.raises(StoreUnavailable) as caught:
            use()
        texts.add(str(caught.value))
    text = texts.pop()
    assert text.startswith("STUN_STORE, ")
    return text


# SQLite.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite3"


@pytest.fixture
def sqlite_store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    store.close()


def test_a_missing_folder_is_said_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "registry.sqlite3"
    store = SqliteStore(path)
    text = fails(store)
    assert str(path) in text
    assert "folder" in text
    assert not path.parent.exists()
    path.parent.mkdir()
    assert store.totals().clusters == 0  # it works as soon as it can
    store.close()


def test_a_folder_in_its_place_is_said(path: Path, sqlite_store: SqliteStore) -> None:
    path.mkdir()
    assert str(path) in fails(sqlite_store)


def test_a_file_that_is_no_database_is_said_and_left_alone(
    path: Path, sqlite_store: SqliteStore
) -> None:
    path.write_text("my notes\n" * 1000)
    assert "not a database" in fails(sqlite_store)
    assert path.read_text() == "my notes\n" * 1000


def test_a_broken_file_is_said(path: Path, sqlite_store: SqliteStore) -> None:
    register(sqlite_store, "0")
    sqlite_store.close()
    held = bytearray(path.read_bytes())
    for start in range(4096, len(held), 4096):
        held[start : start + 200] = b"\xa5" * 200
    path.write_bytes(held)
    assert str(path) in fails(SqliteStore(path))


def test_the_file_of_a_newer_version_is_said_and_left_alone(
    path: Path, sqlite_store: SqliteStore
) -> None:
    register(sqlite_store, "0")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer = SqliteStore(path)
    text = fails(newer)
    assert f"schema {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION}" in text
    assert "update" in text
    newer.close()


def test_another_programs_database_is_said_and_left_alone(
    path: Path, sqlite_store: SqliteStore
) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.commit()
    before = path.read_bytes()
    assert "another program" in fails(sqlite_store)
    assert path.read_bytes() == before


UNWRITABLE = """
import os, sys
from pathlib import Path
from tests.stun_server.test_stores_failing import bump
from stun_server.store import StoreUnavailable
from stun_server.store.sqlite import SqliteStore
if os.geteuid() == 0:
    os.setegid({nobody})
    os.seteuid({nobody})
try:
    SqliteStore(Path(sys.argv[1])).update("a", bump)
except StoreUnavailable as error:
    print(error)
"""


def test_a_file_that_may_not_be_written_is_said() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's are for nobody else to enter
        path = Path(folder, "registry.sqlite3")
        with contextlib.closing(SqliteStore(path)) as store:
            register(store, "0")
        path.chmod(0o444)
        os.chmod(folder, 0o555)
        done = subprocess.run(
            [sys.executable, "-c", UNWRITABLE.format(nobody=NOBODY), str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60.0,
        )
        os.chmod(folder, 0o755)
    assert done.stdout.startswith(f"STUN_STORE, the SQLite file {path}: "), done.stderr
    assert "writable" in done.stdout


FULL = """
import resource, sys
from pathlib import Path
from tests.stun_server.store_writers import register
from stun_server.store import StoreUnavailable
from stun_server.store.sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
register(store, "before")
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, unlimited[1]))
for number in range(10_000):
    try:
        register(store, str(number))
    except StoreUnavailable as error:
        print(error)
        break
else:
    sys.exit("all was written")
held = len(store.listing("a").leases)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
register(store, "after")
assert len(store.listing("a").leases) == held + 1 == number + 2, (held, number)
"""


def test_a_full_disk_is_said_and_nothing_acknowledged_is_lost(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60.0,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"STUN_STORE, the SQLite file {path}: ")
    assert "space" in done.stdout


def test_a_disk_that_is_gone_is_said_and_comes_back(path: Path, sqlite_store: SqliteStore) -> None:
    sqlite_store.resume(ttl=60.0, silence=10.0)
    register(sqlite_store, "0")
    away = path.parent.with_name(path.parent.name + "-away")
    path.parent.rename(away)
    with pytest.raises(StoreUnavailable, match="STUN_STORE"):
        sqlite_store.resume(ttl=60.0, silence=10.0)
    assert "folder" in fails(sqlite_store)
    away.rename(path.parent)
    assert [lease.instance_id for lease in sqlite_store.listing("a").leases] == ["0"]


def test_a_copy_in_its_place_is_used_from_the_next_sign_of_life_on(
    path: Path, sqlite_store: SqliteStore
) -> None:
    register(sqlite_store, "0")
    sqlite_store.close()
    copy = shutil.copy(path, path.with_suffix(".copy"))
    register(sqlite_store, "1")
    epoch = sqlite_store.listing("a").epoch
    sqlite_store.close()
    register(sqlite_store, "2")
    os.replace(copy, path)
    for name in ("-wal", "-shm"):
        path.with_name(path.name + name).unlink()
    sqlite_store.resume(ttl=60.0, silence=10.0)
    listing = sqlite_store.listing("a")
    assert [lease.instance_id for lease in listing.leases] == ["0"]
    assert listing.epoch == epoch


def move(store: Store, address: str) -> None:
    def step(view: ClusterView) -> None:
        view.put(view.leases()["0"]._replace(address=address))
        view.bump()

    store.update("a", step)


def addresses(store: Store) -> list[str]:
    return [lease.address for lease in store.listing("a").leases]


def test_nothing_is_remembered_of_what_a_copy_does_not_have(
    path: Path, sqlite_store: SqliteStore
) -> None:
    register(sqlite_store, "0")
    sqlite_store.close()
    copy = shutil.copy(path, path.with_suffix(".copy"))
    move(sqlite_store, "lost")
    assert addresses(sqlite_store) == ["lost"]
    lost = sqlite_store.listing("a").revision
    sqlite_store.close()
    os.replace(copy, path)
    sqlite_store.resume(ttl=60.0, silence=10.0)
    move(sqlite_store, "kept")
    assert addresses(sqlite_store) == ["kept"]
    assert sqlite_store.listing("a").revision > lost  # no number twice


def test_a_locked_file_holds_nobody_longer_than_one_wait(path: Path) -> None:
    """A program that copies or repairs it. One after the other they would need 20 times as long."""
    store = SqliteStore(path, busy_timeout=0.5)
    register(store, "0")
    seconds: list[float] = []

    def beat() -> None:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"STUN_STORE.*locked"):
            store.renew("a", "0", "run", ttl=60.0, wall=1.0)
        seconds.append(time.monotonic() - began)

    def beat_twice() -> None:  # the second time among those who wait already
        beat()
        beat()

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        threads = [threading.Thread(target=beat_twice) for _ in range(20)]
        for thread in threads:
            thread.start()
            time.sleep(0.02)
        assert len(store.listing("a").leases) == 1  # who reads does not wait
        for thread in threads:
            thread.join()
    assert len(seconds) == 40
    assert min(seconds) > 0.4 and max(seconds) < 1.5
    assert store.renew("a", "0", "run", ttl=60.0, wall=1.0) is Renewal.RENEWED
    store.close()


def test_who_waits_for_a_locked_file_goes_on_when_it_is_free(path: Path) -> None:
    store = SqliteStore(path, busy_timeout=30.0)
    register(store, "0")
    renewals: list[Renewal] = []

    def beat() -> None:
        renewals.append(store.renew("a", "0", "run", ttl=60.0, wall=1.0))

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        threads = [threading.Thread(target=beat) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert renewals == []
        other.execute("ROLLBACK")
        for thread in threads:
            thread.join()
    assert renewals == [Renewal.RENEWED] * 8
    store.close()


def test_the_file_is_for_its_owner_alone(path: Path, sqlite_store: SqliteStore) -> None:
    register(sqlite_store, "0")
    modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes


def test_those_who_make_the_file_at_once_agree(tmp_path: Path) -> None:
    for number in range(10):
        epochs = _epochs_at_once(tmp_path / f"{number}.sqlite3", threads=6)
        assert len(epochs) == 6
        assert len(set(epochs)) == 1


def _epochs_at_once(path: Path, *, threads: int) -> list[str]:
    start = threading.Barrier(threads)
    epochs: list[str] = []

    def look() -> None:
        with contextlib.closing(SqliteStore(path)) as store:
            start.wait()
            register(store, "0")
            epochs.append(store.listing("a").epoch)

    running = [threading.Thread(target=look) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return epochs


# Redis.


def test_a_redis_that_is_not_there_is_said_at_once() -> None:
    port = free_port()
    text = fails(RedisStore(f"redis://user:{SECRET}@127.0.0.1:{port}/0?password={SECRET}"))
    assert f"Redis at 127.0.0.1:{port}/0" in text
    assert SECRET not in text


def test_redis_works_again_after_a_restart(own_redis: RedisServer) -> None:
    with contextlib.closing(RedisStore(own_redis.url)) as store:
        register(store, "0")
        epoch = store.listing("a").epoch
        own_redis.stop()
        assert own_redis.url.removeprefix("redis://") in fails(store)
        own_redis.start_again()
        assert store.listing("a").leases == ()
        assert store.listing("a").epoch != epoch  # it kept nothing
        register(store, "1")
        assert store.renew("a", "1", "run", ttl=60.0, wall=1.0).value == "renewed"


def test_nothing_is_remembered_of_what_a_replica_does_not_have(redis_server: RedisServer) -> None:
    """One that had not got the last change when it became the primary."""
    with contextlib.closing(RedisStore(redis_server.url)) as store, redis_server.client() as client:
        register(store, "0")
        names = ("leases", "cluster")
        for name in names:
            client.copy(f"{PREFIX}{name}:a", name)
        move(store, "lost")
        assert addresses(store) == ["lost"]
        lost = store.listing("a").revision
        for name in names:
            client.copy(name, f"{PREFIX}{name}:a", replace=True)
        move(store, "kept")
        assert addresses(store) == ["kept"]
        assert store.listing("a").revision > lost


def test_connections_that_a_restart_ended_fail_nobody(own_redis: RedisServer) -> None:
    with contextlib.closing(RedisStore(own_redis.url)) as store:
        register(store, "0")
        own_redis.stop()
        own_redis.start_again()
        register(store, "0")
        own_redis.stop()
        own_redis.start_again()
        assert store.resume(ttl=60.0, silence=10.0) == 0


def test_a_redis_that_hangs_holds_nobody_for_long(own_redis: RedisServer) -> None:
    store = RedisStore(own_redis.url)
    register(store, "0")
    own_redis.freeze()
    ended: list[float] = []

    def wait() -> None:
        with pytest.raises(StoreUnavailable, match="STUN_STORE"):
            register(store, "0")
        ended.append(time.monotonic())

    began = time.monotonic()
    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One after the other they would need eight times as long as one.
    assert max(ended) - began < 4 * TIMEOUT
    own_redis.thaw()
    register(store, "1")
    store.close()


def test_a_redis_of_another_password_is_said(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.config_set("requirepass", SECRET)
    text = fails(RedisStore(own_redis.url.replace("redis://", "redis://:wrong-one@")))
    assert "password" in text
    assert "wrong-one" not in text
    store = RedisStore(own_redis.url.replace("redis://", f"redis://:{SECRET}@"))
    assert store.totals().leases == 0
    store.close()


def test_a_url_that_redis_cannot_have_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="STUN_STORE") as caught:
        open_store(f"redis://:{SECRET}@localhost:port/0")
    assert SECRET not in str(caught.value)
