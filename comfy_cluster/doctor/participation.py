"""Looks at the cluster from this instance's place, for some seconds, and tells what it saw.

The others answer it and count it as no member, so they wait for nothing from it and give it no
work. Where the instance itself runs, that one is undisturbed.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from comfy_cluster.config import ClusterConfig, SharedMemory
from comfy_cluster.discovery import Discovery
from comfy_cluster.errors import ClusterError
from comfy_cluster.protocol.events import PeerConnected, PeerLost, PeerRefused, StrangerHeard
from comfy_cluster.runtime import build_discovery
from comfy_cluster.transport.peer_info import Address, PeerInfo
from comfy_cluster.transport.reachability import Reachability, probe
from comfy_cluster.transport.transport import Transport

LOOK_INTERVAL = 0.1  # seconds between two looks at the peers
LARGEST_POOL = 32  # probes at a time


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one peer so far."""

    info: PeerInfo
    refusal: str = ""
    """Why its HELLO was refused the last time."""
    loss: str = ""
    """Why the last connection ended."""
    trouble: str = ""
    """What keeps its address from being found."""
    connected_for: float = 0.0
    """Seconds of the present connection; with other doctors, of the first one."""

    @property
    def is_reached(self) -> bool:
        """UDP passes both ways: to the instance, or to another doctor in its place."""
        return self.info.is_connected or self.info.is_observer

    @property
    def needs_probe(self) -> bool:
        """It is not there, and no better reason is known than what a packet would tell."""
        is_explained = self.is_reached or self.refusal or self.trouble
        return self.info.address is not None and not is_explained


class Participation:
    """A context manager. ClusterError on entering: the port cannot be bound."""

    def __init__(self, config: ClusterConfig) -> None:
        # What is asked is whether UDP passes, also between instances of one machine.
        self._transport = Transport(
            dataclasses.replace(config, shared_memory=SharedMemory.OFF), is_observer=True
        )
        self._discovery: Discovery = build_discovery(config, is_observer=True)
        self._lock = threading.Lock()  # guards what the listeners note
        self._connected_at: dict[int, float] = {}
        self._refusals: dict[int, str] = {}
        self._losses: dict[int, str] = {}
        self._failure: ClusterError | None = None

    def __enter__(self) -> Participation:
        self._transport.add_peer_listener(self._on_event)
        self._transport.start()
        try:
            self._discovery.start(self._transport.add_member, self._on_failure)
        except BaseException:
            self._transport.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._discovery.stop_soon()
        self._transport.close()  # the peers are told first, whatever a server does
        self._discovery.close()

    @property
    def failure(self) -> ClusterError | None:
        """Why this instance cannot be part of the cluster."""
        return self._failure

    def wait(self, seconds: float, *, until: Callable[[list[Seen]], bool]) -> list[Seen]:
        """Listens for `seconds`, or `until` all that is to be seen was seen."""
        deadline = time.monotonic() + seconds
        while True:
            seen = self._look()
            left = deadline - time.monotonic()
            if left <= 0 or self._failure is not None or until(seen):
                return seen
            time.sleep(min(LOOK_INTERVAL, left))

    def _look(self) -> list[Seen]:
        infos = self._transport.peers()
        troubles: Mapping[int, str] = self._discovery.troubles()
        now = time.monotonic()
        with self._lock:
            for info in infos:
                if info.is_observer:  # of which no event tells
                    self._connected_at.setdefault(info.index, now)
            return [
                Seen(
                    info,
                    refusal=self._refusals.get(info.index, ""),
                    loss=self._losses.get(info.index, ""),
                    trouble=troubles.get(info.index, ""),
                    connected_for=now - self._connected_at.get(info.index, now),
                )
                for info in infos
            ]

    def _on_failure(self, error: ClusterError) -> None:
        self._failure = error

    def _on_event(self, event: object) -> None:
        """On the control thread."""
        with self._lock:
            if isinstance(event, PeerConnected):
                self._connected_at[event.peer] = time.monotonic()
                self._refusals.pop(event.peer, None)
            elif isinstance(event, PeerLost):
                self._connected_at.pop(event.peer, None)
                self._losses[event.peer] = event.reason
            elif isinstance(event, PeerRefused):
                self._refusals[event.peer] = event.reason
        if isinstance(event, PeerConnected):
            self._discovery.on_peer_connected(event.peer)
        elif isinstance(event, PeerLost):
            self._discovery.on_peer_lost(event.peer)
        elif isinstance(event, StrangerHeard):
            self._discovery.on_heard(event.peer, event.address, is_observer=event.is_observer)


def probe_all(addresses: Mapping[int, Address]) -> dict[int, Reachability]:
    """Probes all addresses at a time; blocks for seconds where one of them is silent."""
    if not addresses:
        return {}
    with ThreadPoolExecutor(min(len(addresses), LARGEST_POOL)) as pool:
        return dict(zip(addresses, pool.map(probe, addresses.values()), strict=True))
