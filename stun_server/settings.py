"""The rendezvous server's settings, read once from `STUN_*` variables.

Kept apart from `comfy_cluster.config` on purpose: the server stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


class SettingsError(ValueError):
    """A variable has a value that it cannot have; the text names both."""


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """How the server listens, and when it forgets an instance."""

    host: str = "0.0.0.0"
    """`STUN_SERVER_HOST`: address to bind."""
    port: int = 8089
    """`STUN_SERVER_PORT`: TCP port."""
    cleanup_interval: float = 30.0
    """`STUN_CLEANUP_INTERVAL`: seconds between two looks for silent instances."""
    instance_timeout: float = 60.0
    """`STUN_INSTANCE_TIMEOUT`: seconds of silence after which an instance is forgotten."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> RegistrySettings:
        """Read the variables; blank ones count as not set. Raises SettingsError."""
        return cls(
            host=environ.get("STUN_SERVER_HOST", "").strip() or cls().host,
            port=_port(environ, "STUN_SERVER_PORT", cls().port),
            cleanup_interval=_seconds(environ, "STUN_CLEANUP_INTERVAL", cls().cleanup_interval),
            instance_timeout=_seconds(environ, "STUN_INSTANCE_TIMEOUT", cls().instance_timeout),
        )


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise SettingsError(f"Invalid {name}={text!r}: expected a port from 1 to 65535")
    return int(text)


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SettingsError(f"Invalid {name}={text!r}: expected a number of seconds above 0")
    return seconds
