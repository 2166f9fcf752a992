"""The store in one SQLite file, for any number of processes on one machine.

WAL needs shared memory, so the file must be on a local disk (https://www.sqlite.org/wal.html).
Leases are written at synchronous=NORMAL: nothing is lost when a process dies, and after a power cut
the instances register again. Keys are written at FULL.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import orjson

from stun_server.store import absence, host_clock
from stun_server.store.base import (
    AUDIT_PER_CLUSTER,
    AuditEvent,
    ClusterKey,
    ClusterView,
    Founding,
    FoundingLimits,
    Lease,
    Listing,
    Renewal,
    T,
    Totals,
    next_revision,
)
from stun_server.store.known import ClusterState, KnownLeases
from stun_server.store.sqlite_absence import IF_NOT_AWAY, end_absence, say_alive
from stun_server.store.sqlite_connections import BUSY_TIMEOUT, Connections

COUNTS_KEPT = 3600.0  # seconds; longer than any window
_AUDIT_LOOK = 256  # events after which one looks for too many: it costs a walk along the index
_LEASE_COLUMNS = (
    "instance_id, boot_id, address, port, role, generation, registered_at, last_ping_at, "
    "expires_at, candidates, replaced"
)
# One row: sqlite3 gives the GIL away for each, and among busy threads it is long in coming back.
_LEASES_AS_JSON = (
    "SELECT json_group_array(json_array(instance_id, boot_id, address, port, role, generation, "
    "registered_at, last_ping_at, expires_at, json(candidates), json(replaced))) "
    "FROM leases WHERE cluster_id = ?1"
)
_TIMES_AS_JSON = (
    "SELECT json_group_array(json_array(instance_id, last_ping_at, expires_at)) "
    "FROM leases WHERE cluster_id = ?1"
)
_RENEW = (
    "UPDATE leases SET expires_at = ?, last_ping_at = ? WHERE cluster_id = ? "
    "AND instance_id = ? AND expires_at > ? AND boot_id = ifnull(?, boot_id)"
)
_AUDIT_COLUMNS = "at, event, cluster_id, instance_id, source, key_fingerprint, request_id, detail"


class SqliteStore:
    """`path` is made if it is missing; its folder must be there. Thread-safe, fork-safe."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = host_clock.seconds_since_boot,
        wall: Callable[[], float] = time.time,
        boot_id: Callable[[], str] = host_clock.boot_id,
        busy_timeout: float = BUSY_TIMEOUT,
    ) -> None:
        self._connections = Connections(path, busy_timeout=busy_timeout)
        self._clock = clock
        self._wall = wall
        self._boot_id = functools.cache(boot_id)  # no process outlasts a reboot
        self._known = KnownLeases()

    def now(self) -> float:
        return self._clock()

    def update(self, cluster_id: str, step: Callable[[ClusterView], T]) -> T:
        with self._writes() as connection:
            now, renewed = self._now_after_absence(connection)
            view = _View(connection, cluster_id, now, self._wall())
            result = step(view)
            view.flush()
        absence.tell(renewed)
        return result

    def renew(
        self, cluster_id: str, instance_id: str, boot_id: str | None, *, ttl: float, wall: float
    ) -> Renewal:
        subject = (cluster_id, instance_id)
        with self._connections.writer() as writer:
            now = self._clock()
            if writer.begin(
                f"{_RENEW} AND {IF_NOT_AWAY}",
                (now + ttl, wall, *subject, now, boot_id, now),
            ).rowcount:
                return Renewal.RENEWED
        with self._writes() as connection:
            now, renewed = self._now_after_absence(connection)
            is_renewed = connection.execute(
                _RENEW, (now + ttl, wall, *subject, now, boot_id)
            ).rowcount
            is_there = connection.execute(
                "SELECT 1 FROM leases WHERE cluster_id = ? AND instance_id = ? AND expires_at > ?",
                (*subject, now),
            ).fetchone()
        absence.tell(renewed)
        if is_renewed:
            return Renewal.RENEWED
        return Renewal.REPLACED if is_there else Renewal.MISSING

    def listing(self, cluster_id: str) -> Listing:
        with self._connections.one() as connection:
            epoch = self._connections.epoch
            state, times = _state_and(_TIMES_AS_JSON, connection, cluster_id, epoch)
            leases = self._known.with_times(cluster_id, state, orjson.loads(times))
            if leases is None:
                state, text = _state_and(_LEASES_AS_JSON, connection, cluster_id, epoch)
                leases = tuple(_leases(text))
                self._known.note(cluster_id, state, leases)
        return Listing(epoch, state.revision, self._clock(), leases)

    def revisions(self, cluster_ids: Collection[str]) -> dict[str, int]:
        found = {}
        with self._connections.one() as connection:
            for cluster_id in cluster_ids:
                row = connection.execute(
                    "SELECT revision FROM clusters WHERE cluster_id = ?", (cluster_id,)
                ).fetchone()
                found[cluster_id] = row[0] if row else 0
        return found

    def clusters_with_expired(self) -> list[str]:
        return self._column(
            "SELECT DISTINCT cluster_id FROM leases WHERE expires_at <= ?", self._clock()
        )

    def keys(self, cluster_id: str) -> tuple[ClusterKey, ...]:
        with self._connections.one() as connection:
            return _keys(connection, cluster_id)

    def clusters_with_key(self, key_hash: str) -> list[str]:
        return self._column(
            "SELECT cluster_id FROM cluster_keys WHERE key_hash = ? ORDER BY cluster_id", key_hash
        )

    def change_keys(
        self,
        cluster_id: str,
        change: Callable[[tuple[ClusterKey, ...]], tuple[ClusterKey, ...]],
        event: AuditEvent,
    ) -> tuple[ClusterKey, ...]:
        with self._writes(is_durable=True) as connection:
            before = _keys(connection, cluster_id)
            wanted = change(before)
            after = tuple(key for key in wanted if key.is_valid(self._wall()))
            if wanted == before:
                return after
            if not after:
                _forget(connection, cluster_id)
                return after
            _write_keys(connection, cluster_id, after)
            _record(connection, event)
        return after

    def found(
        self, cluster_id: str, key: ClusterKey, event: AuditEvent, limits: FoundingLimits
    ) -> Founding:
        counted = _count_key(limits.bucket, limits.window, key.created_at)
        with self._writes(is_durable=True) as connection:
            if _keys(connection, cluster_id):
                return Founding.HELD
            if _count(connection, counted) >= limits.tries:
                return Founding.TOO_MANY
            _add_one(connection, counted)
            if _cluster_count(connection) >= limits.clusters:
                return Founding.FULL
            _forget(connection, cluster_id)
            _write_keys(connection, cluster_id, (key,))
            _record(connection, event)
        return Founding.DONE

    def forget_idle(self, *, before: float) -> list[str]:
        with self._writes() as connection:
            rows = connection.execute(
                "SELECT k.cluster_id FROM cluster_keys k LEFT JOIN clusters c USING (cluster_id) "
                "GROUP BY k.cluster_id HAVING max(k.is_operators AND k.expires_at IS NULL) = 0 "
                "AND max(max(k.created_at, ifnull(k.expires_at, 0), ifnull(c.changed_at, 0))) < ? "
                "AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.cluster_id = k.cluster_id)",
                (before,),
            ).fetchall()
            for (cluster_id,) in rows:
                _forget(connection, cluster_id)
        return [row[0] for row in rows]

    def count(self, bucket: str, *, window: float, wall: float) -> int:
        key = _count_key(bucket, window, wall)
        with self._writes() as connection:
            _add_one(connection, key)
            return _count(connection, key)

    def count_of(self, bucket: str, *, window: float, wall: float) -> int:
        with self._connections.one() as connection:
            return _count(connection, _count_key(bucket, window, wall))

    def audit(self, cluster_id: str, *, limit: int) -> list[AuditEvent]:
        with self._connections.one() as connection:
            rows = connection.execute(
                f"SELECT {_AUDIT_COLUMNS} FROM audit WHERE cluster_id = ? ORDER BY id DESC LIMIT ?",
                (cluster_id, limit),
            ).fetchall()
        return [AuditEvent(*row) for row in rows]

    def prune_audit(self, *, before: float) -> None:
        with self._writes() as connection:
            connection.execute("DELETE FROM audit WHERE at < ?", (before,))
            connection.execute(
                "DELETE FROM counts WHERE window_at < ?", (self._wall() - COUNTS_KEPT,)
            )

    def resume(self, *, ttl: float, silence: float) -> int:
        self._connections.look_at_file()
        with self._writes() as connection:
            return say_alive(connection, self._clock(), self._boot_id(), ttl=ttl, silence=silence)

    def totals(self) -> Totals:
        with self._connections.one() as connection:
            (leases,) = connection.execute(
                "SELECT count(*) FROM leases WHERE expires_at > ?", (self._clock(),)
            ).fetchone()
            return Totals(clusters=_cluster_count(connection), leases=leases)

    def close(self) -> None:
        self._connections.close()

    def _column(self, statement: str, *values: Any) -> list[str]:
        with self._connections.one() as connection:
            return [row[0] for row in connection.execute(statement, values).fetchall()]

    def _now_after_absence(self, connection: sqlite3.Connection) -> tuple[float, int]:
        """The time by which leases are judged in a transaction, and how many were renewed."""
        now = self._clock()
        return now, end_absence(connection, now, self._boot_id())

    @contextlib.contextmanager
    def _writes(self, *, is_durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction; taken back if the block raises."""
        with self._connections.writer() as writer:
            connection = writer.connection
            if is_durable:
                connection.execute("PRAGMA synchronous = FULL")
            writer.begin("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if is_durable:
                    connection.execute("PRAGMA synchronous = NORMAL")


class _View:
    """A ClusterView within one transaction."""

    def __init__(
        self, connection: sqlite3.Connection, cluster_id: str, now: float, wall: float
    ) -> None:
        self.now = now
        self._wall = wall
        self._connection = connection
        self._cluster_id = cluster_id
        row = connection.execute(
            "SELECT revision, last_generation FROM clusters WHERE cluster_id = ?", (cluster_id,)
        ).fetchone()
        # A cluster that was forgotten starts above all that it ever had.
        self.revision: int = row[0] if row else int(wall)
        self._generation: int = row[1] if row else int(wall)
        self._is_changed = False

    def keys(self) -> tuple[ClusterKey, ...]:
        return _keys(self._connection, self._cluster_id)

    def leases(self) -> dict[str, Lease]:
        row = self._connection.execute(_LEASES_AS_JSON, (self._cluster_id,)).fetchone()
        return {lease.instance_id: lease for lease in _leases(row[0])}

    def put(self, lease: Lease) -> None:
        values = (
            *(lease.instance_id, lease.boot_id, lease.address, lease.port, lease.role),
            *(lease.generation, lease.registered_at, lease.last_ping_at, lease.expires_at),
            json.dumps(lease.candidates),
            json.dumps(lease.replaced),
        )
        self._connection.execute(
            f"INSERT OR REPLACE INTO leases (cluster_id, {_LEASE_COLUMNS}) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self._cluster_id, *values),
        )

    def delete(self, instance_id: str) -> None:
        self._connection.execute(
            "DELETE FROM leases WHERE cluster_id = ? AND instance_id = ?",
            (self._cluster_id, instance_id),
        )

    def bump(self) -> None:
        self.revision = next_revision(self.revision, self._wall)
        self._is_changed = True

    def next_generation(self) -> int:
        self._generation += 1
        self._is_changed = True
        return self._generation

    def record(self, event: AuditEvent) -> None:
        _record(self._connection, event)

    def flush(self) -> None:
        if self._is_changed:
            self._connection.execute(
                "INSERT OR REPLACE INTO clusters VALUES (?, ?, ?, ?)",
                (self._cluster_id, self.revision, self._generation, self._wall),
            )


def _state_and(
    select: str, connection: sqlite3.Connection, cluster_id: str, epoch: str
) -> tuple[ClusterState, str]:
    """In one statement, so that both are of one moment."""
    row = connection.execute(
        f"SELECT revision, changed_at, ({select}) FROM clusters WHERE cluster_id = ?1",
        (cluster_id,),
    ).fetchone()
    revision, changed_at, found = row or (0, 0.0, "[]")
    return ClusterState(epoch, revision, changed_at), found


def _leases(text: str) -> Iterator[Lease]:
    for *values, candidates, replaced in orjson.loads(text):
        yield Lease._make((*values, tuple(candidates), tuple(replaced)))


def _forget(connection: sqlite3.Connection, cluster_id: str) -> None:
    for table in ("cluster_keys", "leases", "clusters", "audit"):
        connection.execute(f"DELETE FROM {table} WHERE cluster_id = ?", (cluster_id,))


def _keys(connection: sqlite3.Connection, cluster_id: str) -> tuple[ClusterKey, ...]:
    rows = connection.execute(
        "SELECT key_hash, created_at, expires_at, is_operators FROM cluster_keys "
        "WHERE cluster_id = ? ORDER BY created_at DESC, key_hash",
        (cluster_id,),
    ).fetchall()
    return tuple(
        ClusterKey(key, created, ends, bool(is_ours)) for key, created, ends, is_ours in rows
    )


def _write_keys(
    connection: sqlite3.Connection, cluster_id: str, keys: tuple[ClusterKey, ...]
) -> None:
    connection.execute("DELETE FROM cluster_keys WHERE cluster_id = ?", (cluster_id,))
    connection.executemany(
        "INSERT INTO cluster_keys VALUES (?, ?, ?, ?, ?)",
        [
            (cluster_id, key.key_hash, key.created_at, key.expires_at, key.is_operators)
            for key in keys
        ],
    )


def _cluster_count(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT count(DISTINCT cluster_id) FROM cluster_keys").fetchone()
    return int(row[0])


def _record(connection: sqlite3.Connection, event: AuditEvent) -> None:
    values = (event.at, event.event, event.cluster_id, event.instance_id, event.source)
    added = connection.execute(
        f"INSERT INTO audit ({_AUDIT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, event.key_fingerprint, event.request_id, event.detail),
    ).lastrowid
    if added is not None and added % _AUDIT_LOOK == 0:
        connection.execute(
            "DELETE FROM audit WHERE cluster_id = ?1 AND id <= (SELECT id FROM audit "
            "WHERE cluster_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            (event.cluster_id, AUDIT_PER_CLUSTER),
        )


def _count_key(bucket: str, window: float, wall: float) -> tuple[str, int]:
    return (bucket, int(wall // window * window))


def _add_one(connection: sqlite3.Connection, key: tuple[str, int]) -> None:
    connection.execute(
        "INSERT INTO counts VALUES (?, ?, 1) "
        "ON CONFLICT (bucket, window_at) DO UPDATE SET count = count + 1",
        key,
    )


def _count(connection: sqlite3.Connection, key: tuple[str, int]) -> int:
    row = connection.execute(
        "SELECT count FROM counts WHERE bucket = ? AND window_at = ?", key
    ).fetchone()
    return int(row[0]) if row else 0
