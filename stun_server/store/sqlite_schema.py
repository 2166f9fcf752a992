"""The tables of the SQLite store. A change raises SCHEMA_VERSION and leads older files to it."""

from __future__ import annotations

SCHEMA_VERSION = 1

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS clusters (
        cluster_id TEXT PRIMARY KEY,
        revision INTEGER NOT NULL,
        last_generation INTEGER NOT NULL,
        changed_at REAL NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS leases (
        cluster_id TEXT NOT NULL,
        instance_id TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        address TEXT NOT NULL,
        port INTEGER NOT NULL,
        role TEXT NOT NULL,
        generation INTEGER NOT NULL,
        registered_at REAL NOT NULL,
        last_ping_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        candidates TEXT NOT NULL,
        replaced TEXT NOT NULL,
        PRIMARY KEY (cluster_id, instance_id)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS cluster_keys (
        cluster_id TEXT NOT NULL,
        key_hash TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        is_operators INTEGER NOT NULL,
        PRIMARY KEY (cluster_id, key_hash)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS cluster_keys_by_hash ON cluster_keys (key_hash)",
    """CREATE TABLE IF NOT EXISTS audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        event TEXT NOT NULL,
        cluster_id TEXT NOT NULL,
        instance_id TEXT NOT NULL,
        source TEXT NOT NULL,
        key_fingerprint TEXT NOT NULL,
        request_id TEXT NOT NULL,
        detail TEXT NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS audit_by_cluster ON audit (cluster_id, id)",
    """CREATE TABLE IF NOT EXISTS counts (
        bucket TEXT NOT NULL,
        window_at INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (bucket, window_at)
    ) WITHOUT ROWID""",
)
