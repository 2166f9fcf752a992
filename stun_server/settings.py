"""The rendezvous server's settings, read once from `STUN_*` variables.

Kept apart from `comfy_cluster.config` on purpose: the server stands alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

DEFAULT_STORE = "sqlite:///stun-server.sqlite3"
SHORTEST_KEY = 16  # characters; as the instances' setting COMFY_CLUSTER_KEY has it
LONGEST_KEY = 1024
CLUSTER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
CLUSTER_ID_FORM = "at most 128 letters, digits, '.', '_' or '-', the first a letter or digit"
# It travels in an HTTP header: printable ASCII without blanks.
KEY = re.compile(rf"[!-~]{{{SHORTEST_KEY},{LONGEST_KEY}}}")
KEY_FORM = f"{SHORTEST_KEY} or more printable ASCII characters without blanks, better 32 or more"
_ALL_ADDRESSES = ("0.0.0.0", "::")
_DAY = 86_400
_YES = ("true", "1", "yes", "on")
_NO = ("false", "0", "no", "off")
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingsError(ValueError):
    """A variable has a value that it cannot have; the text names both."""


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """How the server listens, what it keeps where, and when it forgets an instance."""

    host: str = "0.0.0.0"
    """`STUN_SERVER_HOST`: address to bind."""
    port: int = 8089
    """`STUN_SERVER_PORT`: TCP port of HTTP."""
    udp_port: int | None = 3478
    """`STUN_UDP_PORT`: UDP port of the STUN Binding responder; `off`: None, there is none."""
    udp_host: str | None = None
    """`STUN_UDP_HOST`: address of the responder where it is another one than HTTP's, as behind a
    proxy on the same machine; None: `host`."""
    cleanup_interval: float = 30.0
    """`STUN_CLEANUP_INTERVAL`: seconds between two looks for silent instances."""
    instance_timeout: float = 60.0
    """`STUN_INSTANCE_TIMEOUT`: seconds of silence after which an instance is forgotten."""
    store: str = DEFAULT_STORE
    """`STUN_STORE`: `sqlite:///file` (four slashes: absolute) or `redis://host:port/db`."""
    is_open: bool = True
    """`STUN_OPEN_REGISTRATION`: whether the first registration of a cluster id sets its key."""
    cluster_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """`STUN_CLUSTER_KEYS` and `STUN_CLUSTER_KEYS_FILE`: the operator's keys, by cluster id; those
    of such a cluster in the store do not count."""
    largest_cluster: int = 1024
    """`STUN_MAX_INSTANCES`: instances of one cluster."""
    largest_cluster_count: int = 10_000
    """`STUN_MAX_CLUSTERS`: clusters that registered themselves."""
    trusted_proxies: int = 0
    """`STUN_TRUSTED_PROXIES`: reverse proxies in front, whose X-Forwarded-For is believed."""
    workers: int = 2
    """`STUN_WORKERS`: gunicorn's processes."""
    threads: int = 256
    """`STUN_THREADS`: threads of each; a parked long-poll holds one."""
    log_level: str = "INFO"
    """`STUN_LOG_LEVEL`: DEBUG, INFO, WARNING or ERROR."""

    @property
    def udp_addresses(self) -> tuple[str, ...]:
        """Where the STUN responder listens; all of IPv4 is all of IPv6 too."""
        host = self.udp_host or self.host
        return _ALL_ADDRESSES if host in _ALL_ADDRESSES else (host,)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> RegistrySettings:
        """Read the variables; blank ones count as not set.

        Raises SettingsError: a value is malformed, or the file of keys cannot be read.
        """
        values: dict[str, Any] = {}
        for name, variable in _VARIABLES.items():
            text = environ.get(variable, "").strip()
            if text:
                values[name] = _read(variable, text, *_FORMS[name])
        return cls(**values, cluster_keys=_cluster_keys(environ))


_VARIABLES = {
    "host": "STUN_SERVER_HOST",
    "port": "STUN_SERVER_PORT",
    "udp_port": "STUN_UDP_PORT",
    "udp_host": "STUN_UDP_HOST",
    "cleanup_interval": "STUN_CLEANUP_INTERVAL",
    "instance_timeout": "STUN_INSTANCE_TIMEOUT",
    "store": "STUN_STORE",
    "is_open": "STUN_OPEN_REGISTRATION",
    "largest_cluster": "STUN_MAX_INSTANCES",
    "largest_cluster_count": "STUN_MAX_CLUSTERS",
    "trusted_proxies": "STUN_TRUSTED_PROXIES",
    "workers": "STUN_WORKERS",
    "threads": "STUN_THREADS",
    "log_level": "STUN_LOG_LEVEL",
}
_KEY_VARIABLES = ("STUN_CLUSTER_KEYS", "STUN_CLUSTER_KEYS_FILE")


_kept: RegistrySettings | None = None


def current_settings() -> RegistrySettings:
    """Those of this process's environment, read anew. SettingsError."""
    return RegistrySettings.from_env(os.environ)


def keep(settings: RegistrySettings) -> None:
    """For the processes that are forked from this one."""
    global _kept
    _kept = settings


def kept_settings() -> RegistrySettings:
    """What was kept, however wrong the file of keys is by now; else the current ones."""
    return current_settings() if _kept is None else _kept


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Those that look like settings and are none: perhaps misspelt, perhaps another program's."""
    known = {*_VARIABLES.values(), *_KEY_VARIABLES}
    return sorted(name for name in environ if name.startswith("STUN_") and name not in known)


def _read(variable: str, text: str, parse: Callable[[str], Any], expected: str) -> Any:
    try:
        return parse(text)
    except ValueError:
        shown = text.rpartition("@")[2]  # a password may stand before it
        raise SettingsError(f"Invalid {variable}={shown!r}: expected {expected}") from None


def _whole(lowest: int, highest: int) -> tuple[Callable[[str], int], str]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise ValueError
        return int(text)

    return parse, f"a whole number from {lowest} to {highest}"


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise ValueError
    return int(text)


def _udp_port(text: str) -> int | None:
    return None if text.lower() == "off" else _port(text)


def _seconds(lowest: float, highest: float) -> tuple[Callable[[str], float], str]:
    def parse(text: str) -> float:
        seconds = float(text)
        if not lowest <= seconds <= highest:
            raise ValueError
        return seconds

    return parse, f"a number of seconds from {lowest:g} to {highest:g}"


def _flag(text: str) -> bool:
    if text.lower() not in _YES + _NO:
        raise ValueError
    return text.lower() in _YES


def _store(text: str) -> str:
    url = urlsplit(text)
    is_file = url.scheme == "sqlite" and text.startswith("sqlite:///") and len(url.path) > 1
    if not is_file and not (url.scheme in ("redis", "rediss", "unix") and url.netloc + url.path):
        raise ValueError
    return text


def _log_level(text: str) -> str:
    if text.upper() not in _LOG_LEVELS:
        raise ValueError
    return text.upper()


_FORMS: dict[str, tuple[Callable[[str], Any], str]] = {
    "host": (str, "an address"),
    "port": (_port, "a port from 1 to 65535"),
    "udp_port": (_udp_port, "a port from 1 to 65535, or off"),
    "udp_host": (str, "an address"),
    "cleanup_interval": _seconds(0.1, _DAY),
    "instance_timeout": _seconds(1, _DAY),
    "store": (_store, "sqlite:///file.sqlite3 or redis://host:6379/0"),
    "is_open": (_flag, "true or false"),
    "largest_cluster": _whole(1, 100_000),
    "largest_cluster_count": _whole(1, 10_000_000),
    "trusted_proxies": _whole(0, 16),
    "workers": _whole(1, 64),
    "threads": _whole(2, 4096),
    "log_level": (_log_level, "one of " + ", ".join(_LOG_LEVELS)),
}


def _cluster_keys(environ: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The operator's keys. Texts of errors never hold a key."""
    keys: dict[str, tuple[str, ...]] = {}
    for number, entry in enumerate(environ.get("STUN_CLUSTER_KEYS", "").split(","), start=1):
        if entry.strip():
            cluster_id, key = _cluster_key(entry, f"STUN_CLUSTER_KEYS, entry {number}")
            keys[cluster_id] = (*keys.get(cluster_id, ()), key)
    name = environ.get("STUN_CLUSTER_KEYS_FILE", "").strip()
    if not name:
        return keys
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise SettingsError(f"Invalid STUN_CLUSTER_KEYS_FILE={name!r}: {reason}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            cluster_id, key = _cluster_key(line, f"{name}, line {number}")
            keys[cluster_id] = (*keys.get(cluster_id, ()), key)
    return keys


def _cluster_key(entry: str, where: str) -> tuple[str, str]:
    cluster_id, _, key = (part.strip() for part in entry.partition("="))
    if not CLUSTER_ID.fullmatch(cluster_id):
        raise SettingsError(
            f"Invalid {where}: expected cluster=key, the cluster id {CLUSTER_ID_FORM}"
        )
    if not KEY.fullmatch(key):
        raise SettingsError(f"Invalid {where}: the key of {cluster_id!r} must have {KEY_FORM}")
    return cluster_id, key
