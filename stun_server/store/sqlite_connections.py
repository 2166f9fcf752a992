"""A process's connections to the file of the SQLite store; `sqlite.py` alone uses them.

Each thread has one for as long as it needs it, and they are kept for the next. Two things end them
all: a fork, because SQLite's must not cross one, not even to be closed in the child
(https://www.sqlite.org/howtocorrupt.html, 2.6); and another file in the place of theirs, such as an
older copy, because SQLite itself goes on with the one that has no name any more.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from stun_server.store.base import StoreUnavailable
from stun_server.store.sqlite_schema import SCHEMA, SCHEMA_VERSION

BUSY_TIMEOUT = 5.0  # seconds that a writer waits for those of other processes
_File = tuple[int, int]  # device and inode
_NO_FILE: _File = (0, 0)


class Connections:
    """Thread-safe. The file and its tables are made if they are missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._epoch = ""
        self._file = _NO_FILE
        self._idle: list[sqlite3.Connection] = []  # all of that file
        self._used = 0  # how many
        self._lock = threading.Lock()  # guards the four above
        self._none_used = threading.Condition(self._lock)
        # One writer of this process at a time: SQLite's own way of waiting is to sleep and look.
        self._writing = threading.Lock()
        _all.add(self)

    @property
    def epoch(self) -> str:
        """Of the file that was opened last."""
        return self._epoch

    @contextlib.contextmanager
    def one(self) -> Iterator[sqlite3.Connection]:
        """A connection for the block. StoreUnavailable: there is none, or SQLite failed in it."""
        try:
            connection, file = self._take()
            try:
                yield connection
            except sqlite3.Error:
                self._give_back(connection, _NO_FILE)  # it may be what is wrong
                raise
            except BaseException:
                self._give_back(connection, file)
                raise
            self._give_back(connection, file)
        except sqlite3.Error as error:
            raise StoreUnavailable(
                f"STUN_STORE, the SQLite file {self._path}: {error}. Is its folder there and "
                "writable, on a local disk with space?"
            ) from error

    @contextlib.contextmanager
    def writer(self) -> Iterator[sqlite3.Connection]:
        """The same, while no other thread has a writer."""
        with self._writing, self.one() as connection:
            yield connection

    def look_at_file(self) -> None:
        """Leaves a file that is not in its place any more."""
        self._is_of(_file_at(self._path))

    def close(self) -> None:
        """Those that nobody uses; whoever needs one opens it again."""
        with self._lock:
            self._close_idle()

    def before_fork(self) -> None:
        """Closes all when nobody uses one, and lets nobody have one until after it."""
        self._writing.acquire()
        self._lock.acquire()
        while self._used:
            self._none_used.wait()
        self._close_idle()

    def after_fork(self) -> None:
        """In both processes."""
        self._lock.release()
        self._writing.release()

    def _take(self) -> tuple[sqlite3.Connection, _File]:
        with self._lock:
            idle = self._idle.pop() if self._idle else None
            file = self._file
            self._used += 1
        if idle is not None:
            return idle, file
        try:
            return self._connect()
        except BaseException:
            self._give_back(None, _NO_FILE)
            raise

    def _give_back(self, connection: sqlite3.Connection | None, file: _File) -> None:
        with self._lock:
            self._used -= 1
            if connection is not None and file == self._file != _NO_FILE:
                self._idle.append(connection)
            elif connection is not None:
                connection.close()
            if not self._used:
                self._none_used.notify_all()

    def _is_of(self, file: _File) -> None:
        with self._lock:
            if file != self._file:
                self._file = file
                self._close_idle()

    def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _connect(self) -> tuple[sqlite3.Connection, _File]:
        with contextlib.suppress(OSError):  # SQLite says better what is wrong
            # Keys are in it, if only their hashes.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        file = _file_at(self._path)
        connection = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            is_made = self._is_made(connection)  # before anything is written to it
            _set_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            if not is_made:
                _make_tables(connection)
            epoch = connection.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0]
        except BaseException:
            connection.close()
            raise
        self._is_of(file)
        self._epoch = epoch
        return connection, file

    def _is_made(self, connection: sqlite3.Connection) -> bool:
        """False: the file is empty. StoreUnavailable: what is in it is not this store's."""
        version, table_count = connection.execute(
            "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"
        ).fetchone()
        reason = ""
        if version > SCHEMA_VERSION:
            reason = (
                f"a newer version of this server made it (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): update, or use another file"
            )
        elif table_count and not version:
            reason = "it is another program's database: use another file"
        if reason:
            raise StoreUnavailable(f"STUN_STORE, the SQLite file {self._path}: {reason}")
        return bool(version)


def _set_wal(connection: sqlite3.Connection) -> None:
    """SQLite does not wait by itself where several do this to a new file at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.001, 0.02))


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA:
        connection.execute(statement)
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', ?)", (secrets.token_hex(4),))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _file_at(path: Path) -> _File:
    try:
        found = path.stat()
    except OSError:
        return _NO_FILE
    return (found.st_dev, found.st_ino)


_all: weakref.WeakSet[Connections] = weakref.WeakSet()
_held_for_fork: list[Connections] = []


def _before_fork() -> None:
    for each in list(_all):
        each.before_fork()
        _held_for_fork.append(each)


def _after_fork() -> None:
    while _held_for_fork:
        _held_for_fork.pop().after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
