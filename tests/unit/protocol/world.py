"""Endpoints over fake engines, joined by a network in virtual time.

Delivery takes `DELAY`, and nothing is lost but what a test says is lost (`World.is_lost`). Buffers
are not sent again by the fake engine, so a test that loses one leaves its transfer waiting.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from comfy_cluster.fastpath import EVENT_OUTGOING_ACKED
from comfy_cluster.protocol import (
    BufferArrived,
    Endpoint,
    Event,
    ProtocolSettings,
    SharedMemoryPort,
)
from comfy_cluster.wire import Message, MessageType
from tests.unit.protocol.fake_engine import FakeEngine, Sent, address_of, key_of, payload_of

DELAY = 0.005  # seconds from one instance to another
EventT = TypeVar("EventT")


@dataclass
class World:
    """Endpoints over fake engines, in virtual time."""

    count: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    now: float = 0.0
    is_lost: Callable[[Sent], bool] = lambda packet: False
    log: list[Sent] = field(default_factory=list)
    """All that was sent, lost or not."""
    shared_memory_of: Callable[[int], SharedMemoryPort | None] = lambda index: None

    def __post_init__(self) -> None:
        self.engines: dict[int, FakeEngine] = {}
        self.endpoints: dict[int, Endpoint] = {}
        self.events: dict[int, list[Event]] = {}
        self.wake_ups: dict[int, int] = {}
        self._arrivals: list[tuple[float, Sent]] = []
        self._boots = 0
        for index in range(self.count):
            self.boot(index)

    def boot(self, index: int, **options: Any) -> Endpoint:
        """Start an instance, or start it again: the old one is gone without a word."""
        self._boots += 1
        defaults = {
            "instance_count": self.count,
            "boot_id": self._boots,
            "memory_budget": 4_000_000,
        }
        settings = ProtocolSettings(instance_index=index, **{**defaults, **self.options, **options})
        engine = self.engines[index] = FakeEngine(index)
        endpoint = self.endpoints[index] = Endpoint(
            settings,
            engine,
            rng=random.Random(f"{self.seed} {self._boots}"),
            allocate=bytearray,
            now=self.now,
            shared_memory=self.shared_memory_of(index),
        )
        self.events[index] = []
        self.wake_ups[index] = 0
        for peer in range(self.count):
            if peer != index:
                endpoint.add_member(peer, address_of(peer), self.now)
        return endpoint

    def kill(self, index: int) -> None:
        del self.engines[index], self.endpoints[index]

    def connect(self) -> None:
        pairs = [(a, b) for a in self.endpoints for b in self.endpoints if a != b]
        self.run_until(lambda: all(self.endpoints[a].is_connected(b) for a, b in pairs), 30.0)
        self.run_for(0.1)

    # Time

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        self._settle()
        while (due := self._next_moment()) is not None and due <= end:
            self._step(due)
        self.now = end

    def run_until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = self.now + seconds
        self._settle()
        while not condition():
            due = self._next_moment()
            assert due is not None and due <= end, f"not within {seconds} virtual seconds"
            self._step(due)

    def _next_moment(self) -> float | None:
        timers = [endpoint.next_timer() for endpoint in self.endpoints.values()]
        moments = [timer for timer in timers if timer is not None]
        moments += [at for at, _ in self._arrivals[:1]]
        return min(moments, default=None)

    def _step(self, due: float) -> None:
        self.now = max(self.now, due)
        while self._arrivals and self._arrivals[0][0] <= self.now:
            self._deliver(self._arrivals.pop(0)[1])
        for index, endpoint in self.endpoints.items():
            timer = endpoint.next_timer()
            if timer is not None and timer <= self.now:
                self.wake_ups[index] += 1
                endpoint.handle_timers(self.now)
                later = endpoint.next_timer()
                assert later is None or later > self.now, "a timer that is due again at once"
        self._settle()

    def _settle(self) -> None:
        for index, endpoint in self.endpoints.items():
            endpoint.handle_engine_events(self.now)
            while (event := endpoint.next_event()) is not None:
                self.events[index].append(event)
            engine = self.engines[index]
            for packet in engine.sent:
                self.log.append(packet)
                if not self.is_lost(packet):
                    self._arrivals.append((self.now + DELAY, packet))
            engine.sent.clear()

    def _deliver(self, packet: Sent) -> None:
        target = next((i for i in self.engines if address_of(i) == packet.target), None)
        if target is None:
            return
        source = self.engines.get(packet.source)
        _, content = source.outgoing.get(packet.buffer_id, (0, None)) if source else (0, None)
        if self.engines[target].receive(packet, content, self.now) and source is not None:
            source.events.append((EVENT_OUTGOING_ACKED, target, packet.buffer_id))

    # What tests ask

    def send(self, source: int, target: int, name: str, content: bytes, job: str = "job") -> int:
        payload = payload_of(content)
        return self.endpoints[source].send_buffer(
            target,
            key_of(name, source, job),
            payload,
            digest=payload.digest(),
            message_type=MessageType.DISTRIBUTE_BUFFER_FANOUT,
            now=self.now,
        )

    def claim(self, index: int, name: str, source: int = 0, job: str = "job") -> None:
        self.endpoints[index].claim(key_of(name, source, job), self.now)

    def seen(self, index: int, kind: type[EventT]) -> list[EventT]:
        """The events of one kind so far, in order."""
        return [event for event in self.events[index] if isinstance(event, kind)]

    def confirm_all(self, index: int = 1) -> None:
        """The layer above finds every digest right."""
        for event in self.seen(index, BufferArrived):
            self.endpoints[index].confirm_buffer(event.buffer_id, self.now)
        self.run_for(0.1)

    def release_all(self, index: int = 1) -> None:
        """The layer above is done with the memory of every payload."""
        for event in self.seen(index, BufferArrived):
            self.endpoints[index].release_buffer(event.buffer_id, self.now)
        self.run_for(0.1)

    def arrived(self, index: int) -> dict[str, BufferArrived]:
        return {event.key.node_id: event for event in self.seen(index, BufferArrived)}

    def sent_types(self, source: int) -> list[MessageType | None]:
        return [packet.message_type for packet in self.log if packet.source == source]

    def inject(self, source: int, target: int, message: Message) -> None:
        """A message that the endpoint of `source` did not send, inside its connection."""
        engine = self.engines[source]
        engine.send_message(target, message.pack())

    def bookkeeping(self, index: int) -> dict[str, int]:
        """Sizes of all that must be empty when nothing is under way."""
        endpoint = self.endpoints[index]
        incoming, outgoing = endpoint._incoming, endpoint._outgoing
        store = incoming._store
        return {
            "messages": len(endpoint._messages),
            "outboxes": sum(len(peer.outbox) for peer in endpoint._connections.peers.values()),
            "transfers": len(outgoing) + len(outgoing._by_buffer_id),
            "announcements": len(outgoing._announcements) + len(outgoing._accepted),
            "outgoing budget": outgoing._budget.used,
            "incoming": len(store) + len(store._by_key) + len(store.queue),
            "unclaimed": sum(map(abs, store._unclaimed_counts.values())),
            "lanes": len(store.queue._lanes),
            "claims": len(incoming._claims),
            "incoming budget": store._budget.used,
            "routes": len(endpoint._chains) + len(endpoint._relays) + len(incoming._routes),
            "engine": len(self.engines[index].outgoing) + len(self.engines[index].incoming),
            "engine's relays": len(self.engines[index].relays),
        }

    def is_idle(self, index: int) -> bool:
        return not any(self.bookkeeping(index).values())
