"""The server's signs of life in SQLite, and what leases get after an absence; see `absence.py`.

Each function is called within a transaction that may write, and `now` is read in it: no other
process's sign of life is later.
"""

from __future__ import annotations

import sqlite3

# Of an UPDATE: it changes nothing after an absence, or where the clock started anew. The parameter
# is the time now; it may be earlier than another's sign of life, which is then looked at again.
IF_NOT_AWAY = (
    "NOT EXISTS (SELECT 1 FROM meta a JOIN meta s ON s.name = 'silence' WHERE a.name = 'alive_at' "
    "AND ? - CAST(a.value AS REAL) NOT BETWEEN 0 AND CAST(s.value AS REAL))"
)


def say_alive(
    connection: sqlite3.Connection, now: float, boot_id: str, *, ttl: float, silence: float
) -> int:
    """Writes a sign of life and its terms; the number of leases that an absence gave a new time."""
    renewed = _end_absence(connection, now, boot_id, _meta(connection), ttl=ttl, silence=silence)
    _write(connection, {"ttl": repr(ttl), "silence": repr(silence)})
    _write(connection, {"alive_at": repr(now), "boot_id": boot_id})
    return renewed


def end_absence(connection: sqlite3.Connection, now: float, boot_id: str) -> int:
    """The same by the terms that were written last, and only if there was an absence."""
    meta = _meta(connection)
    if "silence" not in meta:
        return 0
    terms = {"ttl": float(meta["ttl"]), "silence": float(meta["silence"])}
    return _end_absence(connection, now, boot_id, meta, **terms)


def _end_absence(
    connection: sqlite3.Connection,
    now: float,
    boot_id: str,
    meta: dict[str, str],
    *,
    ttl: float,
    silence: float,
) -> int:
    alive_at = float(meta.get("alive_at", now))
    is_rebooted = meta.get("boot_id", boot_id) != boot_id or now < alive_at
    if not is_rebooted and now - alive_at <= silence:
        return 0
    renewed = connection.execute(
        "SELECT count(*) FROM leases WHERE expires_at > ?", (alive_at,)
    ).fetchone()[0]
    # Times of before a reboot mean nothing now: what had expired then has now.
    connection.execute(
        "UPDATE leases SET expires_at = "
        "CASE WHEN expires_at > ? THEN ? ELSE min(expires_at, ?) END",
        (alive_at, now + ttl, now),
    )
    _write(connection, {"alive_at": repr(now), "boot_id": boot_id})
    return int(renewed)


def _meta(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM meta").fetchall())


def _write(connection: sqlite3.Connection, values: dict[str, str]) -> None:
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))
