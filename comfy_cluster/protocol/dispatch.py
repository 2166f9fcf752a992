"""Where things go that come in: engine events, messages by their type, timers by their kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from comfy_cluster.errors import PeerLost, RemoteProtocolError
from comfy_cluster.fastpath import (
    EVENT_HELLO,
    EVENT_INCOMING_COMPLETE,
    EVENT_MESSAGE,
    EVENT_PACKET_SIZE,
    EVENT_STUN,
)
from comfy_cluster.protocol import events
from comfy_cluster.protocol.chains import Chains
from comfy_cluster.protocol.connections import Connections
from comfy_cluster.protocol.courier import Courier
from comfy_cluster.protocol.engine_port import EnginePort
from comfy_cluster.protocol.incoming_buffer import IncomingBuffer
from comfy_cluster.protocol.incoming_buffers import IncomingBuffers
from comfy_cluster.protocol.messages import is_for_user, parse_large
from comfy_cluster.protocol.outgoing_buffers import OutgoingBuffers
from comfy_cluster.protocol.peers import Peer
from comfy_cluster.protocol.shared_memory_port import SharedArrived, SharedMemoryPort
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.protocol.timers import TimerKind
from comfy_cluster.wire import (
    BUFFER_TYPES,
    LARGEST_MESSAGE_PAYLOAD,
    Ack,
    BufferAccept,
    BufferAnnouncement,
    BufferCancel,
    BufferDone,
    BufferFailed,
    Goodbye,
    Message,
    MessageType,
    Route,
)

logger = logging.getLogger("comfy_cluster.protocol")

# A large message in a buffer is its payload and the other fields of ClusterMessage.
LARGEST_MESSAGE_BUFFER = LARGEST_MESSAGE_PAYLOAD + 64
# All that one who only looks may say.
_OF_OBSERVERS = (MessageType.HEARTBEAT, MessageType.GOODBYE)


class Dispatch:
    def __init__(
        self,
        instance_index: int,
        *,
        engine: EnginePort,
        connections: Connections,
        courier: Courier,
        incoming: IncomingBuffers,
        outgoing: OutgoingBuffers,
        chains: Chains,
        shared_memory: SharedMemoryPort,
        stats: ProtocolStats,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._instance_index = instance_index
        self._engine = engine
        self._connections = connections
        self._courier = courier
        self._incoming = incoming
        self._outgoing = outgoing
        self._chains = chains
        self._shared_memory = shared_memory
        self._stats = stats
        self._emit = emit
        self._receivers: dict[MessageType, Callable[[Peer, Message, float], None]] = {
            MessageType.ACK: self._on_ack,
            MessageType.HEARTBEAT: self._on_heartbeat,
            MessageType.GOODBYE: self._on_goodbye,
            MessageType.BUFFER_ACCEPT: self._on_accept,
            MessageType.BUFFER_DONE: self._on_done,
            MessageType.BUFFER_FAILED: self._on_failed,
            MessageType.BUFFER_CANCEL: self._on_cancel,
            MessageType.MESSAGE_BUFFER: self._on_announcement,
            **dict.fromkeys(BUFFER_TYPES, self._on_announcement),
        }

    # From the engine

    def handle_engine_events(self, now: float) -> None:
        """Act on all events of engine and shared memory, then send the ACKs that they cost."""
        heard: dict[int, Peer] = {}
        for event in self._engine.take_events():
            kind = event[0]
            if kind == EVENT_MESSAGE:
                peer = self._connections.peers.get(event[1])
                if peer is not None and peer.connection is not None:
                    heard[peer.index] = peer
                    self._on_message(peer, event[2], now)
            elif kind == EVENT_HELLO:
                self._connections.on_hello(event[1], event[2], now)
            elif kind == EVENT_STUN:
                self._emit(events.StunReceived(event[1], event[2]))
            elif kind == EVENT_INCOMING_COMPLETE:
                self._incoming.on_complete(event[2], now)
            elif kind == EVENT_PACKET_SIZE:
                self._connections.on_packet_size(event[1], event[2])
                self._outgoing.on_packet_size(event[1], event[2], now)
        self._handle_shared_events(now)
        for peer in heard.values():
            self._send_acks(peer)

    def _handle_shared_events(self, now: float) -> None:
        for event in self._shared_memory.take_events():
            if isinstance(event, SharedArrived):
                self._incoming.on_shared_arrived(event.buffer_id, event.memory, now)
            else:
                self._incoming.on_shared_failed(event.buffer_id, event.reason, now)

    def _send_acks(self, peer: Peer) -> None:
        for ack in peer.inbox.take_acks():
            if peer.is_connected:
                self._stats.acks_sent += 1
                self._courier.send_control_once(peer.index, MessageType.ACK, ack.pack())

    # Messages

    def _on_message(self, peer: Peer, packed: bytes, now: float) -> None:
        """Network bytes: whatever they are, nothing is raised."""
        self._connections.on_message(peer)
        try:
            message = Message.parse(packed)
            if peer.is_observer and message.message_type not in _OF_OBSERVERS:
                raise RemoteProtocolError(f"{message.message_type.name} of an observer")
            if self._is_new(peer, message):
                self._receive(peer, message, now)
        except RemoteProtocolError as error:
            self._stats.messages_malformed += 1
            logger.debug("< %d message dropped: %s", peer.index, error)

    def _is_new(self, peer: Peer, message: Message) -> bool:
        is_from_peer = message.sender_instance == peer.index
        if not is_from_peer or message.target_instance != self._instance_index:
            self._stats.messages_misaddressed += 1
            return False
        if message.require_ack and not peer.inbox.on_message(message.message_id):
            self._stats.messages_duplicate += 1
            return False
        self._stats.messages_received += 1
        return True

    def _receive(self, peer: Peer, message: Message, now: float) -> None:
        receiver = self._receivers.get(message.message_type)
        if receiver is not None:
            receiver(peer, message, now)
        elif is_for_user(message.message_type):
            logger.debug("< %d %s %d", peer.index, message.message_type.name, message.message_id)
            received = events.MessageReceived(peer.index, message.message_type, message.payload)
            self._emit(received)
        else:
            raise RemoteProtocolError(f"{message.message_type.name} in a connection")

    def _on_ack(self, peer: Peer, message: Message, now: float) -> None:
        for message_id in Ack.parse(message.payload).message_ids:
            peer.outbox.on_ack(message_id, now)

    def _on_heartbeat(self, peer: Peer, message: Message, now: float) -> None:
        """The engine noted its arrival, which is all there is to it."""

    def _on_goodbye(self, peer: Peer, message: Message, now: float) -> None:
        reason = Goodbye.parse(message.payload).reason
        self._connections.lose(peer, f"left: {reason}" if reason else "left", now)

    def _on_announcement(self, peer: Peer, message: Message, now: float) -> None:
        announcement = BufferAnnouncement.parse(message.payload)
        is_message = message.message_type is MessageType.MESSAGE_BUFFER
        if is_message and announcement.size > LARGEST_MESSAGE_BUFFER:
            raise RemoteProtocolError(f"a message of {announcement.size} bytes")
        route = announcement.route
        if route is not None and self._is_circular(announcement.key.source, route):
            raise RemoteProtocolError("a route that leads back")
        if route is not None and is_message:
            raise RemoteProtocolError("a message with a route")
        self._incoming.on_announcement(peer.index, message.message_type, announcement, now)

    def _on_accept(self, peer: Peer, message: Message, now: float) -> None:
        self._outgoing.on_accept(peer.index, BufferAccept.parse(message.payload), now)

    def _is_circular(self, origin: int, route: Route) -> bool:
        return self._instance_index in (origin, *route.relay_to) or origin in route.relay_to

    def _on_done(self, peer: Peer, message: Message, now: float) -> None:
        done = BufferDone.parse(message.payload)
        self._sender_of(done.buffer_id).on_done(peer.index, done, now)

    def _on_failed(self, peer: Peer, message: Message, now: float) -> None:
        failed = BufferFailed.parse(message.payload)
        self._sender_of(failed.buffer_id).on_failed(peer.index, failed, now)

    def _on_cancel(self, peer: Peer, message: Message, now: float) -> None:
        """Either side may cancel: the id tells whose buffer it is."""
        cancel = BufferCancel.parse(message.payload)
        if cancel.buffer_id >> 48 == self._instance_index:
            self._sender_of(cancel.buffer_id).on_cancel(peer.index, cancel, now)
        else:
            self._incoming.on_cancel(peer.index, cancel, now)

    def _sender_of(self, name: int) -> OutgoingBuffers | Chains:
        """Receivers name one transfer, or the payload of a route."""
        return self._chains if name in self._chains else self._outgoing

    def on_message_buffer(self, buffer: IncomingBuffer, now: float) -> None:
        """A large message is complete."""
        try:
            message = parse_large(buffer, self._instance_index)
        except RemoteProtocolError as error:
            self._stats.messages_malformed += 1
            logger.debug("< %d large message dropped: %s", buffer.peer, error)
            self._incoming.release(buffer.buffer_id, now)
            return
        if message is None:
            self._incoming.reject(buffer.buffer_id, "its digest does not match", now)
            return
        self._incoming.confirm(buffer.buffer_id, now)
        self._incoming.release(buffer.buffer_id, now)
        received = events.MessageReceived(buffer.peer, message.message_type, message.payload)
        self._emit(received)

    # Timers

    def on_timer(self, kind: TimerKind, subject: Any, now: float) -> None:
        if kind is TimerKind.LIVENESS:
            self._connections.on_liveness_timer(now)
        elif kind is TimerKind.MESSAGE:
            peer = self._connections.peers.get(subject[0])
            if peer is not None:
                peer.outbox.on_timer(subject[1], now)
        elif kind is TimerKind.HELLO:
            self._connections.on_hello_timer(subject, now)
        elif kind is TimerKind.TRANSFER:
            self._outgoing.on_transfer_timer(subject, now)
        elif kind is TimerKind.UNCLAIMED:
            self._incoming.on_unclaimed_timer(subject, now)
        elif kind is TimerKind.RELAY:
            self._incoming.on_relay_timer(subject, now)
        elif kind is TimerKind.REROUTE:
            self._chains.on_reroute_timer(subject, now)
        elif not self._connections.is_connected(subject.source):
            text = f"instance {subject.source} is not connected, which should send {subject}"
            self._incoming.on_claim_timer(subject, PeerLost(text, peer=subject.source))
