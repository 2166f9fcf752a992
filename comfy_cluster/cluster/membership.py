"""Who is connected: counts the instances, says when there are enough, and logs who comes and goes.

Told of events by the transport's control thread, read by any thread. It finds nobody itself
(discovery/ does) and decides nothing about jobs (`jobs.py` does).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from comfy_cluster.cluster.ports import PeerEvent
from comfy_cluster.config import LEADER, ClusterConfig
from comfy_cluster.discovery.base import Address, address_text
from comfy_cluster.protocol.events import PeerConnected, PeerLost, PeerRefused
from comfy_cluster.transport.handle import Handle

logger = logging.getLogger("comfy_cluster.cluster")


class Membership:
    """The instances of the cluster and which of them are connected. Thread-safe."""

    def __init__(self, config: ClusterConfig) -> None:
        self._count = config.instance_count
        self._min_instances = config.min_instances
        self._addresses: dict[int, Address] = {}
        self._connected: set[int] = {config.instance_index}
        self._codecs: dict[int, tuple[str, ...]] = {}
        self._refused: dict[int, str] = {}
        self._lock = threading.Lock()
        self._needs_leader = not config.is_leader
        self.ready = self._new_ready()
        """Done once MIN_INSTANCES are connected, the leader among them. It stays done when some are
        lost; when that is the leader, there is a new one."""
        self._check_ready()

    @property
    def connected_count(self) -> int:
        """Connected instances, this one included."""
        return len(self._connected)

    def is_connected(self, instance: int) -> bool:
        return instance in self._connected

    def summary(self) -> str:
        """`Connected: 3/4 instances`."""
        return f"Connected: {self.connected_count}/{self._count} instances"

    def set_address(self, peer: int, address: Address) -> None:
        """Where `peer` may be reached."""
        with self._lock:
            self._addresses[peer] = address

    def hostname_of(self, peer: int) -> str:
        """The IP literal where `peer` is; empty while it is not known."""
        address = self._addresses.get(peer)
        return "" if address is None else address[0]

    def codecs_of(self, peer: int) -> tuple[str, ...]:
        """What `peer` said that it can decode; () where it said nothing, or never connected."""
        return self._codecs.get(peer, ())

    def handle_event(self, event: PeerEvent) -> None:
        """Takes in what the transport reports, and logs it."""
        if isinstance(event, PeerConnected):
            self._on_connected(event)
        elif isinstance(event, PeerLost):
            self._on_lost(event)
        elif isinstance(event, PeerRefused):
            self._on_refused(event)

    def troubles(self, others: Mapping[int, str]) -> dict[int, str]:
        """By instance that is not connected: why, if that is known here or in `others`."""
        with self._lock:
            reasons = {**others, **self._refused}
            return {each: text for each, text in reasons.items() if each not in self._connected}

    def missing_text(self, troubles: Mapping[int, str]) -> str:
        """Which instances are not connected, and why if that is known here or in `troubles`."""
        reasons = self.troubles(troubles)
        with self._lock:
            missing = [each for each in range(self._count) if each not in self._connected]
        named = [
            self._name(each) + (f" [{reasons[each]}]" if each in reasons else "")
            for each in missing
        ]
        return (
            f"{self.summary()}, {self._min_instances} are needed; missing: {', '.join(named)}. "
            "Is each of them running, with the same settings, and can its UDP port be reached?"
        )

    def _on_connected(self, event: PeerConnected) -> None:
        with self._lock:
            self._connected.add(event.peer)
            self._refused.pop(event.peer, None)
            self._addresses[event.peer] = event.address
            self._codecs[event.peer] = event.codecs
        logger.info("= %s is connected. %s", self._name(event.peer), self.summary())
        if self.connected_count == self._count:
            logger.info("All instances registered. %s", self.summary())
        self._check_ready()

    def _on_lost(self, event: PeerLost) -> None:
        with self._lock:
            self._connected.discard(event.peer)
            if event.peer == LEADER and self.ready.done():
                self.ready = self._new_ready()
        # The protocol core logs trouble (`Instance timeout`) as it finds it; this is the count.
        logger.info("= %s is gone: %s. %s", self._name(event.peer), event.reason, self.summary())

    def _on_refused(self, event: PeerRefused) -> None:
        with self._lock:
            self._refused[event.peer] = event.reason
        logger.warning("! %s is refused: %s", self._name(event.peer), event.reason)

    def _check_ready(self) -> None:
        has_leader = not self._needs_leader or LEADER in self._connected
        if has_leader and self.connected_count >= self._min_instances:
            self.ready.set_result(None)

    @staticmethod
    def _new_ready() -> Handle[None]:
        return Handle("waiting for the other instances")

    def _name(self, peer: int) -> str:
        address = self._addresses.get(peer)
        return f"instance {peer}" + (f" ({address_text(address)})" if address else "")
