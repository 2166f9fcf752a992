"""An engine that keeps the contract of `EnginePort` without packets, and a world that joins some.

Delivery takes `DELAY` of virtual time, whole buffers arrive at once, and nothing is lost but what
a test says is lost (`World.is_lost`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.fastpath import (
    EVENT_HELLO,
    EVENT_INCOMING_COMPLETE,
    EVENT_MESSAGE,
    EVENT_OUTGOING_ACKED,
    MESSAGE_PAYLOAD_LIMIT,
)
from comfy_cluster.protocol import BufferArrived, Endpoint, Event, ProtocolSettings
from comfy_cluster.wire import Message, MessageType, TransferKey

DELAY = 0.005  # seconds from one instance to another
Address = tuple[str, int]
EventT = TypeVar("EventT")


def address_of(index: int) -> Address:
    return (f"10.0.0.{index + 1}", 9998)


@dataclass
class Sent:
    """Something on its way."""

    source: int
    target: Address
    session: int  # 0: a HELLO
    payload: bytes = b""
    buffer_id: int = 0  # not 0: the whole buffer

    @property
    def message(self) -> Message:
        return Message.parse(self.payload)

    @property
    def message_type(self) -> MessageType | None:
        return self.message.message_type if self.payload else None


@dataclass
class FakePeer:
    address: Address
    local_session: int
    remote_session: int
    packet_size: int
    last_received_at: float


class FakeEngine:
    """Keeps what it is told; `World` moves it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.now = 0.0
        self.allowed: set[Address] = set()
        self.peers: dict[int, FakePeer] = {}
        self.outgoing: dict[int, tuple[int, bytes]] = {}
        self.incoming: dict[int, tuple[int, memoryview, int]] = {}
        self.sent: list[Sent] = []
        self.events: list[tuple[Any, ...]] = []

    def allow_address(self, address: Address) -> None:
        self.allowed.add(address)

    def disallow_address(self, address: Address) -> None:
        self.allowed.discard(address)

    def connect_peer(
        self,
        peer: int,
        address: Address,
        *,
        local_session: int,
        remote_session: int,
        packet_size: int,
        now: float,
    ) -> None:
        self.disconnect_peer(peer)
        assert local_session not in {known.local_session for known in self.peers.values()}
        self.peers[peer] = FakePeer(address, local_session, remote_session, packet_size, now)

    def disconnect_peer(self, peer: int) -> None:
        self.peers.pop(peer, None)
        self.outgoing = {key: item for key, item in self.outgoing.items() if item[0] != peer}
        self.incoming = {key: item for key, item in self.incoming.items() if item[0] != peer}

    def send_hello(self, address: Address, payload: bytes) -> None:
        assert len(payload) <= MESSAGE_PAYLOAD_LIMIT
        self.sent.append(Sent(self.index, address, 0, payload))

    def send_message(self, peer: int, payload: bytes) -> bool:
        assert len(payload) <= MESSAGE_PAYLOAD_LIMIT
        flow = self.peers.get(peer)
        if flow is None:
            return False
        self.sent.append(Sent(self.index, flow.address, flow.remote_session, payload))
        return True

    def open_outgoing(
        self, peer: int, buffer_id: int, prefix: bytes, body: Any, *, chunk_size: int
    ) -> None:
        assert buffer_id not in self.outgoing
        flow = self.peers[peer]
        self.outgoing[buffer_id] = (peer, prefix + memoryview(body).cast("B"))
        packet = Sent(self.index, flow.address, flow.remote_session, buffer_id=buffer_id)
        self.sent.append(packet)

    def close_outgoing(self, buffer_id: int) -> None:
        self.outgoing.pop(buffer_id, None)

    def open_incoming(
        self, peer: int, buffer_id: int, destination: Any, *, size: int, chunk_size: int
    ) -> None:
        assert peer in self.peers and buffer_id not in self.incoming
        self.incoming[buffer_id] = (peer, memoryview(destination).cast("B"), size)

    def close_incoming(self, buffer_id: int) -> None:
        self.incoming.pop(buffer_id, None)

    def take_events(self) -> list[tuple[Any, ...]]:
        events, self.events = self.events, []
        return events

    def peer_stats(self, peer: int) -> dict[str, float | int]:
        return {"last_received_at": self.peers[peer].last_received_at}

    def receive(self, packet: Sent, content: bytes | None, now: float) -> bool:
        """Take what arrived. True: it was a buffer, and it is complete now."""
        source = address_of(packet.source)
        if packet.session == 0:
            if source in self.allowed:
                self.events.append((EVENT_HELLO, source, packet.payload))
            return False
        for peer, flow in self.peers.items():
            if flow.local_session == packet.session and flow.address == source:
                flow.last_received_at = now
                return self._receive_from(peer, packet, content)
        return False

    def _receive_from(self, peer: int, packet: Sent, content: bytes | None) -> bool:
        if not packet.buffer_id:
            self.events.append((EVENT_MESSAGE, peer, packet.payload))
            return False
        if packet.buffer_id not in self.incoming or content is None:
            return False
        _, destination, size = self.incoming[packet.buffer_id]
        assert len(content) == size
        destination[:size] = content
        self.events.append((EVENT_INCOMING_COMPLETE, peer, packet.buffer_id))
        return True


def payload_of(content: bytes, prefix_size: int = 0) -> EncodedPayload:
    return EncodedPayload(content[:prefix_size], memoryview(content)[prefix_size:], "raw")


def key_of(name: str, source: int = 0, job: str = "job") -> TransferKey:
    return TransferKey(job, name, source=source)


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
        settings = ProtocolSettings(
            instance_index=index, **{**defaults, **self.options, **options}
        )
        engine = self.engines[index] = FakeEngine(index)
        endpoint = self.endpoints[index] = Endpoint(
            settings,
            engine,
            rng=random.Random(f"{self.seed} {self._boots}"),
            allocate=bytearray,
            now=self.now,
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
            "lanes": len(store.queue._lanes),
            "claims": len(incoming._claims),
            "incoming budget": store._budget.used,
            "engine": len(self.engines[index].outgoing) + len(self.engines[index].incoming),
        }

    def is_idle(self, index: int) -> bool:
        return not any(self.bookkeeping(index).values())


def settings_of(index: int = 0, count: int = 2, **options: Any) -> ProtocolSettings:
    base = ProtocolSettings(instance_index=index, instance_count=count, boot_id=index + 1)
    return replace(base, **options)
