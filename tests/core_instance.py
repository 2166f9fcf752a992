"""Whole cores (Endpoint and engine) on the simulated network, as the control thread drives them.

`CoreCluster` boots, kills and restarts instances and keeps what each of them was told. Digests are
MD5 here: the core carries the 16 bytes, and the layer above (this file) verifies them.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, TypeVar

from comfy_cluster import protocol
from comfy_cluster.errors import ClusterError
from comfy_cluster.protocol import (
    BufferArrived,
    Endpoint,
    Event,
    ProtocolSettings,
    RelayEnded,
    RelayLate,
)
from comfy_cluster.wire import MessageType, TransferKey
from tests.simnet import Address, Link, SimNetwork

EventT = TypeVar("EventT")
MEMORY_BUDGET = 4_000_000


def address_of(index: int) -> Address:
    return (f"10.0.1.{index + 1}", 9998)


def key_of(name: str, source: int, job: str = "job") -> TransferKey:
    return TransferKey(job_id=job, node_id=name, source=source)


@dataclass(frozen=True)
class Payload:
    """What `send_buffer` takes: a prefix and a body."""

    prefix: bytes
    body: bytes


class Block(bytearray):
    """Memory that can be watched."""


class Memory:
    """The receiver's memory: how much of it is alive, and how much ever was at once."""

    def __init__(self) -> None:
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._numbers = itertools.count()

    @property
    def used(self) -> int:
        return sum(self._sizes.values())

    def allocate(self, size: int) -> Block:
        block, number = Block(size), next(self._numbers)
        self._sizes[number] = size
        weakref.finalize(block, self._sizes.pop, number).atexit = False
        self.peak = max(self.peak, self.used)
        return block


class CoreInstance:
    """One run of one instance; verifies, confirms and releases each buffer as it arrives.

    What it is handed it overwrites as soon as it may, as users of a tensor do.
    """

    def __init__(
        self, module: ModuleType, settings: ProtocolSettings, rng: random.Random, now: float
    ) -> None:
        self.settings = settings
        self.engine: Any = module.PacketEngine()
        self.memory = Memory()
        self.endpoint = Endpoint(
            settings, self.engine, rng=rng, allocate=self.memory.allocate, now=now
        )
        self.events: list[tuple[float, Event]] = []
        self.contents: dict[TransferKey, bytes] = {}
        self.arrival_order: list[str] = []
        self.rejections = 0  # so many buffers are still to be called damaged
        self.is_releasing = True
        self.is_rejecting: Callable[[BufferArrived], bool] = lambda event: False
        self.lent: dict[int, Any] = {}  # memory of buffers that are still relayed
        for peer in range(settings.instance_count):
            if peer != settings.instance_index:
                self.endpoint.add_member(peer, address_of(peer), now)

    def receive_packet(self, packet: bytes, address: Address, now: float) -> None:
        self.engine.receive_packet(packet, address, now)
        self.turn(now)

    def packets_to_send(self, now: float) -> list[tuple[Address, bytes]]:
        self.turn(now)
        packets: list[tuple[Address, bytes]] = self.engine.packets_to_send(now)
        return packets

    def next_timer(self) -> float | None:
        timers = (self.engine.next_timer(), self.endpoint.next_timer())
        return min((timer for timer in timers if timer is not None), default=None)

    def turn(self, now: float) -> None:
        """One round of the control thread."""
        self.endpoint.handle_engine_events(now)
        self.endpoint.handle_timers(now)
        while (event := self.endpoint.next_event()) is not None:
            if isinstance(event, RelayEnded):
                self._use(self.lent.pop(event.buffer_id))
                self._release(event.buffer_id, now)
            elif isinstance(event, RelayLate):  # its user has a copy
                del self.lent[event.buffer_id]
                self._release(event.buffer_id, now)
            if not isinstance(event, BufferArrived):
                self.events.append((now, event))
                continue
            self.events.append((now, replace(event, memory=b"")))
            buffer_id, is_mine = event.buffer_id, self._take(event, now)
            del event  # the memory must be gone before the release
            if is_mine:
                self._release(buffer_id, now)

    def _take(self, event: BufferArrived, now: float) -> bool:
        """True: it is right, and nobody else reads it."""
        if not self._verify(event, now):
            return False
        if self.endpoint.is_relaying(event.buffer_id):
            self.lent[event.buffer_id] = event.memory
            return False
        self._use(event.memory)
        return True

    def _use(self, memory: Any) -> None:
        """What a user of the tensor may do with it."""
        memory[:] = bytes(len(memory))

    def _release(self, buffer_id: int, now: float) -> None:
        if self.is_releasing:
            self.endpoint.release_buffer(buffer_id, now)

    def _verify(self, event: BufferArrived, now: float) -> bool:
        content = bytes(memoryview(event.memory)[: event.size])
        if (
            self.rejections
            or self.is_rejecting(event)
            or hashlib.md5(content).digest() != event.digest
        ):
            self.rejections = max(0, self.rejections - 1)
            self.endpoint.reject_buffer(event.buffer_id, "the digest differs", now)
            return False
        assert event.key not in self.contents, f"{event.key} arrived twice"
        self.contents[event.key] = content
        self.arrival_order.append(event.key.node_id)
        assert self.endpoint.confirm_buffer(event.buffer_id, now)
        return True

    def seen(self, kind: type[EventT]) -> list[EventT]:
        return [event for _, event in self.events if isinstance(event, kind)]


@dataclass
class CoreCluster:
    """Instances on one network. `options` are settings of all of them."""

    module: ModuleType
    count: int = 2
    link: Link = field(default_factory=Link)
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network = SimNetwork(seed=self.seed, link=self.link)
        self.instances: dict[int, CoreInstance] = {}
        self._boots = itertools.count(1)
        for index in range(self.count):
            self.boot(index)

    @property
    def now(self) -> float:
        return self.network.now

    def boot(self, index: int, **options: Any) -> CoreInstance:
        """Start an instance, or start it again: the old one is gone without a word."""
        instance = self.new_instance(index, **options)
        self.instances[index] = instance
        self.network.attach(address_of(index), instance)
        return instance

    def new_instance(self, index: int, **options: Any) -> CoreInstance:
        """An instance that is not on the network."""
        boot_id = next(self._boots)
        values = {
            "instance_index": index,
            "instance_count": self.count,
            "boot_id": boot_id,
            "memory_budget": MEMORY_BUDGET,
        }
        settings = ProtocolSettings(**(values | self.options | options))
        rng = random.Random(f"{self.seed} {boot_id}")
        return CoreInstance(self.module, settings, rng, self.now)

    def kill(self, index: int) -> None:
        self.network.detach(address_of(index))
        del self.instances[index]

    def connect(self, time_limit: float = 20.0) -> None:
        self.network.run_until(self.is_connected, time_limit=time_limit)
        self.network.run_for(0.2)

    def is_connected(self) -> bool:
        return all(
            instance.endpoint.is_connected(peer)
            for index, instance in self.instances.items()
            for peer in self.instances
            if peer != index
        )

    def send(self, source: int, target: int, name: str, content: bytes, job: str = "job") -> int:
        split = min(64, len(content))
        return self.instances[source].endpoint.send_buffer(
            target,
            key_of(name, source, job),
            Payload(content[:split], content[split:]),
            digest=hashlib.md5(content).digest(),
            message_type=MessageType.DISTRIBUTE_BUFFER_FANIN,
            now=self.now,
        )

    def send_chain(
        self, source: int, targets: Sequence[int], name: str, content: bytes, job: str = "job"
    ) -> dict[int, int]:
        split = min(64, len(content))
        return self.instances[source].endpoint.send_chain(
            targets,
            key_of(name, source, job),
            Payload(content[:split], content[split:]),
            digest=hashlib.md5(content).digest(),
            message_type=MessageType.DISTRIBUTE_BUFFER_BROADCAST,
            now=self.now,
        )

    def say(self, source: int, target: int, payload: bytes) -> int:
        return self.instances[source].endpoint.send_message(
            target, MessageType.EXECUTE_WORKFLOW, payload, now=self.now
        )

    def claim(self, index: int, name: str, source: int, job: str = "job") -> None:
        self.instances[index].endpoint.claim(key_of(name, source, job), self.now)

    def run_until(self, condition: Callable[[], bool], *, time_limit: float) -> None:
        self.network.run_until(condition, time_limit=time_limit)

    def run_for(self, seconds: float) -> None:
        self.network.run_for(seconds)


def endings(instance: CoreInstance) -> dict[int, list[str]]:
    """Return how each message and each outgoing buffer ended: id to the names of its ends."""
    ends: dict[int, list[str]] = {}
    for _, event in instance.events:
        if isinstance(event, protocol.MessageDelivered | protocol.MessageFailed):
            ends.setdefault(event.message_id, []).append(type(event).__name__)
        if isinstance(event, protocol.BufferSent | protocol.BufferFailed):
            ends.setdefault(event.buffer_id, []).append(type(event).__name__)
    return ends


def only_error(events: list[Any]) -> ClusterError:
    """Return the error of the one event there is."""
    assert len(events) == 1, events
    error: ClusterError = events[0].error
    return error
