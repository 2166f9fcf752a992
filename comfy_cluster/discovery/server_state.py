"""What an instance knows of each of its rendezvous servers. Used by `stun.py` alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from comfy_cluster.discovery.base import Address
from comfy_cluster.discovery.registry import Listed, Registration, Registry


@dataclass(slots=True)
class Lookup:
    """A name that is to be looked up."""

    listed: Listed
    at: float
    delay: float


@dataclass(slots=True)
class Server:
    """One server, and how it goes with it. Changed by its own thread, but for the lookups."""

    registry: Registry
    heartbeat_interval: float
    retry_delay: float
    thread: threading.Thread | None = None
    is_registering: bool = False
    """What it answers decides whether this instance has to leave: that is not interrupted."""
    registered_as: Registration | None = None
    heartbeat_at: float = 0.0
    revision: str = ""
    trouble: str = ""
    """Why this instance is not registered there; empty: it is."""
    listed: dict[int, Listed] = field(default_factory=dict)
    lookups: dict[int, Lookup] = field(default_factory=dict)
    found: dict[int, Address] = field(default_factory=dict)
    """Where those are that it lists, connected or not."""
    has_listed: bool = False
    """It takes the key, and tells who is there."""
    holder_ping: str | None = None
    """When the instance that has this one's index gave a sign of life; None: none is known."""
    was_taken_in: bool = False
    """It has registered this instance before."""
