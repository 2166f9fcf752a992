"""Picks the store by the URL of `STUN_STORE`."""

from __future__ import annotations

from pathlib import Path

from stun_server.settings import SettingsError
from stun_server.store.base import Store
from stun_server.store.sqlite import SqliteStore


def open_store(url: str) -> Store:
    """The store at `url`, without a connection yet: those are made by use, after any fork.

    SettingsError: the library for it is missing, or the URL is wrong. StoreUnavailable comes with
    the first use.
    """
    if url.startswith("sqlite:///"):
        return SqliteStore(Path(url.removeprefix("sqlite:///")))
    try:
        from stun_server.store.redis import RedisStore
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"STUN_STORE={url.partition(':')[0]}://... needs redis-py: pip install 'redis>=5'"
        ) from error
    try:
        return RedisStore(url)
    except ValueError:  # whose text may hold a part of the password
        raise SettingsError(
            "Invalid STUN_STORE: expected redis://[user:password@]host:port/number; in a password "
            "/, ?, #, @ and : are written %2F, %3F, %23, %40 and %3A"
        ) from None
