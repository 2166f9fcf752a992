"""Several transports in one process, connected over 127.0.0.1, and payloads to send."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType, TracebackType
from typing import Any

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.config import ClusterConfig, SharedMemory
from comfy_cluster.protocol import PeerConnected, PeerLost
from comfy_cluster.transport.shared_memory.availability import why_unavailable
from comfy_cluster.transport.transport import Transport
from comfy_cluster.wire import MessageType, TransferKey
from tests.integration.clusters import configs

WAIT = 30.0  # seconds; a bound for a broken build, never waited for in a good one
FANIN = MessageType.DISTRIBUTE_BUFFER_FANIN


class Instance:
    """A transport that keeps what its listeners are told."""

    def __init__(self, config: ClusterConfig, engine: ModuleType | None = None) -> None:
        self.config = config
        self.index = config.instance_index
        options = {} if engine is None else {"make_engine": engine.PacketEngine}
        self.transport = Transport(config, **options)
        self.events: list[object] = []
        self.messages: list[tuple[int, bytes]] = []
        self.changed = threading.Condition()
        self.transport.add_peer_listener(self._on_event)
        self.transport.add_message_listener(MessageType.EXECUTION_RESULT, self._on_message)

    def start(self) -> None:
        self.transport.start()
        for peer, address in enumerate(self.config.udp_hostnames):
            if peer != self.index:
                self.transport.add_member(peer, (address.hostname, address.port))

    def _on_event(self, event: object) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def _on_message(self, peer: int, payload: bytes) -> None:
        with self.changed:
            self.messages.append((peer, payload))
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], what: str = "what was expected") -> None:
        with self.changed:
            assert self.changed.wait_for(condition, WAIT), f"{what} did not come: {self.events}"

    @property
    def connected(self) -> set[int]:
        peers: set[int] = set()
        for event in list(self.events):
            if isinstance(event, PeerConnected):
                peers.add(event.peer)
            elif isinstance(event, PeerLost):
                peers.discard(event.peer)
        return peers

    def wait_until_connected(self, count: int) -> None:
        self.wait_for(lambda: len(self.connected) == count, f"{count} connections")


class Instances:
    """All instances of one cluster, connected with each other; closed at the end.

    They share memory, but for those whose settings turn that off.
    """

    def __init__(self, count: int, engine: ModuleType | None = None, **changes: Any) -> None:
        self.all = [Instance(config, engine) for config in configs(count, **changes)]

    def __enter__(self) -> list[Instance]:
        for instance in self.all:
            instance.start()
        for instance in self.all:
            instance.wait_until_connected(len(self.all) - 1)
        wait_until_shared([each for each in self.all if may_share(each.config)])
        return self.all

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for instance in self.all:
            instance.transport.close()


def may_share(config: ClusterConfig) -> bool:
    return config.shared_memory is SharedMemory.AUTO and not why_unavailable()


def wait_until_shared(instances: list[Instance]) -> None:
    """Links are made just after connections."""
    for each in instances:
        for other in instances:
            shares = partial(each.transport.shares_memory, other.index)
            if other is not each:
                wait_until(shares, f"the link between {each.index} and {other.index}")


def key_of(source: int, number: int = 0, *, job: str = "job", node: str = "node") -> TransferKey:
    return TransferKey(job, node, list_index=number, source=source)


def payload_of(rng: random.Random, size: int) -> EncodedPayload:
    """A payload of `size` random bytes, 64 of them prefix if there are so many."""
    data = rng.randbytes(size)
    return EncodedPayload(data[:64], memoryview(data)[64:], "raw")


def bytes_of(payload: EncodedPayload) -> bytes:
    return payload.prefix + payload.body


def our_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return sorted(name for name in names if name.startswith("comfy-cluster"))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """For what no condition variable tells of: looks again and again."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.005)
