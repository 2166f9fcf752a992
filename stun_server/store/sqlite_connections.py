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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stun_server.store.base import StoreUnavailable
from stun_server.store.sqlite_schema import SCHEMA, SCHEMA_VERSION

# Seconds that a writer waits for all others, this process' and others'. Requests make up to three
# steps, and clients wait for 10 s.
BUSY_TIMEOUT = 3.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.0001, 0.002  # seconds between its tries
_File = tuple[int, int]  # device and inode
_NO_FILE: _File = (0, 0)


@dataclass(frozen=True, slots=True)
class Writer:
    """The one connection of this process that may write now."""

    connection: sqlite3.Connection
    deadline: float
    """Monotonic time until which it waits for other processes."""

    def begin(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """The first statement, which waits for the writers of other processes.

        SQLite itself would sleep for 1, 2, 5, 10, ... ms, while a heartbeat takes a tenth of one.
        """
        pause = SHORTEST_PAUSE
        while True:
            try:
                return self.connection.execute(statement, values)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > self.deadline:
                    raise
            time.sleep(random.uniform(0.5, 1.0) * pause)
            pause = min(2 * pause, LONGEST_PAUSE)


class Connections:
    """Thread-safe. The file and its tables are made if they are missing."""

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._epoch = ""
        self._file = _NO_FILE
        self._idle: list[sqlite3.Connection] = []  # all of that file
        self._idle_writer: sqlite3.Connection | None = None
        self._used = 0  # how many
        self._lock = threading.Lock()  # guards the four above
        self._none_used = threading.Condition(self._lock)
        # One writer of this process at a time; it waits for others by `Writer.begin`.
        self._writing = threading.Lock()
        _all.add(self)

    @property
    def epoch(self) -> str:
        """Of the file that was opened last."""
        return self._epoch

    @contextlib.contextmanager
    def one(self) -> Iterator[sqlite3.Connection]:
        """A connection for the block. StoreUnavailable: there is none, or SQLite failed in it."""
        with self._one(time.monotonic() + self._busy_timeout, is_writer=False) as connection:
            yield connection

    @contextlib.contextmanager
    def writer(self) -> Iterator[Writer]:
        """The same, while no other thread has a writer; it writes by `Writer.begin`."""
        deadline = time.monotonic() + self._busy_timeout
        if not self._writing.acquire(timeout=self._busy_timeout):
            raise StoreUnavailable(
                f"STUN_STORE, the SQLite file {self._path}: locked for {self._busy_timeout:g} s. "
                "Does another program write to it, such as one that makes a copy?"
            )
        try:
            with self._one(deadline, is_writer=True) as connection:
                yield Writer(connection, deadline)
        finally:
            self._writing.release()

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

    @contextlib.contextmanager
    def _one(self, deadline: float, *, is_writer: bool) -> Iterator[sqlite3.Connection]:
        try:
            connection, file = self._take(deadline, is_writer=is_writer)
            try:
                yield connection
            except sqlite3.Error:
                self._give_back(connection, _NO_FILE, is_writer)  # it may be what is wrong
                raise
            except BaseException:
                self._give_back(connection, file, is_writer)
                raise
            self._give_back(connection, file, is_writer)
        except sqlite3.Error as error:
            raise StoreUnavailable(
                f"STUN_STORE, the SQLite file {self._path}: {error}. Is its folder there and "
                "writable, on a local disk with space?"
            ) from error

    def _take(self, deadline: float, *, is_writer: bool) -> tuple[sqlite3.Connection, _File]:
        with self._lock:
            if is_writer:
                idle, self._idle_writer = self._idle_writer, None
            else:
                idle = self._idle.pop() if self._idle else None
            file = self._file
            self._used += 1
        if idle is not None:
            return idle, file
        try:
            return self._connect(deadline, is_writer=is_writer)
        except BaseException:
            self._give_back(None, _NO_FILE, is_writer)
            raise

    def _give_back(
        self, connection: sqlite3.Connection | None, file: _File, is_writer: bool
    ) -> None:
        with self._lock:
            self._used -= 1
            if connection is not None and file == self._file != _NO_FILE:
                if is_writer:
                    self._idle_writer = connection
                else:
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
        writer, self._idle_writer = self._idle_writer, None
        for connection in [*idle, *([writer] if writer is not None else [])]:
            connection.close()

    def _connect(self, deadline: float, *, is_writer: bool) -> tuple[sqlite3.Connection, _File]:
        with contextlib.suppress(OSError):  # it is there; else SQLite says better what is wrong
            # Keys are in it, if only their hashes. Never opened when it is there: to close it would
            # end the locks that SQLite has on it (https://www.sqlite.org/howtocorrupt.html, 2.2).
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        file = _file_at(self._path)
        connection = sqlite3.connect(
            self._path,
            timeout=max(0.0, deadline - time.monotonic()),
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            is_made = self._is_made(connection)  # before anything is written to it
            _set_wal(connection, deadline)
            connection.execute("PRAGMA synchronous = NORMAL")
            if not is_made:
                _make_tables(connection)
            epoch = connection.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0]
            timeout = 0.0 if is_writer else self._busy_timeout
            connection.execute(f"PRAGMA busy_timeout = {round(timeout * 1000)}")
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


def _set_wal(connection: sqlite3.Connection, deadline: float) -> None:
    """SQLite does not wait by itself where several do this to a new file at once."""
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
