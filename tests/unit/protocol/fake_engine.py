"""An engine that keeps the contract of `EnginePort` without packets: whole buffers arrive at once.

`world.py` joins several of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.fastpath import (
    EVENT_HELLO,
    EVENT_INCOMING_COMPLETE,
    EVENT_MESSAGE,
    MESSAGE_PAYLOAD_LIMIT,
    chunk_size_for,
)
from comfy_cluster.protocol import ProtocolSettings
from comfy_cluster.wire import Message, MessageType, TransferKey

Address = tuple[str, int]


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
        self.relays: dict[
            int, tuple[int, int]
        ] = {}  # buffer id: peer, and whose bytes it waits for
        self.complete: set[int] = set()
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
        largest_packet_size: int,
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
        if chunk_size > chunk_size_for(flow.packet_size):
            raise ValueError(f"chunk_size must be 1 to {chunk_size_for(flow.packet_size)}")
        self.outgoing[buffer_id] = (peer, prefix + memoryview(body).cast("B"))
        packet = Sent(self.index, flow.address, flow.remote_session, buffer_id=buffer_id)
        self.sent.append(packet)

    def open_relay(self, peer: int, buffer_id: int, source_id: int, *, chunk_size: int) -> None:
        if source_id not in self.incoming:
            raise ValueError(f"buffer {source_id} is not being received")
        if source_id in self.complete:
            self._open_complete(peer, buffer_id, source_id)
        else:
            self.relays[buffer_id] = (peer, source_id)

    def _open_complete(self, peer: int, buffer_id: int, source_id: int) -> None:
        _, memory, size = self.incoming[source_id]
        self.open_outgoing(peer, buffer_id, b"", bytes(memory[:size]), chunk_size=1)

    def close_outgoing(self, buffer_id: int) -> None:
        self.outgoing.pop(buffer_id, None)
        self.relays.pop(buffer_id, None)

    def open_incoming(
        self, peer: int, buffer_id: int, destination: Any, *, size: int, chunk_size: int
    ) -> None:
        assert peer in self.peers and buffer_id not in self.incoming
        self.incoming[buffer_id] = (peer, memoryview(destination).cast("B"), size)

    def close_incoming(self, buffer_id: int) -> None:
        self.incoming.pop(buffer_id, None)
        self.complete.discard(buffer_id)

    def take_events(self) -> list[tuple[Any, ...]]:
        events, self.events = self.events, []
        return events

    def peer_stats(self, peer: int) -> dict[str, float | int]:
        flow = self.peers[peer]
        return {"last_received_at": flow.last_received_at, "packet_size": flow.packet_size}

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
        self.complete.add(packet.buffer_id)
        for relay_id, (successor, source_id) in list(self.relays.items()):
            if source_id == packet.buffer_id:
                del self.relays[relay_id]
                self._open_complete(successor, relay_id, source_id)
        self.events.append((EVENT_INCOMING_COMPLETE, peer, packet.buffer_id))
        return True


def payload_of(content: bytes, prefix_size: int = 0) -> EncodedPayload:
    return EncodedPayload(content[:prefix_size], memoryview(content)[prefix_size:], "raw")


def key_of(name: str, source: int = 0, job: str = "job") -> TransferKey:
    return TransferKey(job, name, source=source)


def settings_of(index: int = 0, count: int = 2, **options: Any) -> ProtocolSettings:
    base = ProtocolSettings(instance_index=index, instance_count=count, boot_id=index + 1)
    return replace(base, **options)
