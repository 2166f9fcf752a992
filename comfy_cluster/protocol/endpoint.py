"""The protocol core of one instance: connections, messages and buffers, without any I/O.

`Endpoint` routes; each mechanism is a file of its own beside it. No socket, thread, clock or torch:
`now` (monotonic seconds) comes in with every call, packets are the engine's matter. Only the
control thread of `transport/` may call it; tests drive it on a simulated network. Beside the calls
of the layer above two things drive it: `handle_engine_events` when the engine has events, and
`handle_timers` at `next_timer`. After each of the three, `next_event` has what happened.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from comfy_cluster.errors import (
    ClusterError,
    LocalProtocolError,
    PeerLost,
    TransferCancelled,
)
from comfy_cluster.protocol import events
from comfy_cluster.protocol.budget import IncomingBudget, OutgoingBudget
from comfy_cluster.protocol.buffer_replies import BufferReplies
from comfy_cluster.protocol.chains import Chains
from comfy_cluster.protocol.claims import Claims
from comfy_cluster.protocol.connections import Connections
from comfy_cluster.protocol.courier import Courier
from comfy_cluster.protocol.dispatch import Dispatch
from comfy_cluster.protocol.engine_port import Address, EnginePort
from comfy_cluster.protocol.incoming_buffers import IncomingBuffers
from comfy_cluster.protocol.incoming_store import IncomingStore
from comfy_cluster.protocol.messages import UserMessages
from comfy_cluster.protocol.outgoing_buffer import OutgoingPayload, PayloadParts
from comfy_cluster.protocol.outgoing_buffers import OutgoingBuffers
from comfy_cluster.protocol.peers import Peer
from comfy_cluster.protocol.relays import Relays
from comfy_cluster.protocol.settings import ProtocolSettings
from comfy_cluster.protocol.shared_memory_port import (
    NoSharedMemory,
    PeerProof,
    SharedMemoryPort,
)
from comfy_cluster.protocol.stats import PeerInfo, ProtocolStats
from comfy_cluster.protocol.timers import Timers
from comfy_cluster.wire import BUFFER_TYPES, Goodbye, Message, MessageType, TransferKey

if TYPE_CHECKING:
    from typing_extensions import Buffer


_GOODBYE = Goodbye("the instance was closed")


class Endpoint:
    """`allocate(size)` gives writable memory of at least `size` bytes, or raises MemoryError."""

    def __init__(
        self,
        settings: ProtocolSettings,
        engine: EnginePort,
        *,
        rng: random.Random,
        allocate: Callable[[int], Buffer],
        now: float,
        shared_memory: SharedMemoryPort | None = None,
    ) -> None:
        """`shared_memory` None: payloads travel over UDP only."""
        self._shared_memory = shared_memory or NoSharedMemory()
        self.settings = settings
        self.stats = ProtocolStats()
        self._events: deque[events.Event] = deque()
        self._timers = Timers()
        self._is_closed = False
        self._connections = Connections(
            settings=settings,
            engine=engine,
            rng=rng,
            timers=self._timers,
            stats=self.stats,
            emit=self._events.append,
            send_heartbeat=self._send_heartbeat,
            listener=self,
        )
        self._courier = Courier(
            settings.instance_index,
            engine=engine,
            rng=rng,
            peers=self._connections.peers,
            stats=self.stats,
            on_unanswered=self._connections.on_unanswered,
        )
        self._outgoing = OutgoingBuffers(
            settings=settings,
            budget=OutgoingBudget(settings.memory_budget // 2),
            courier=self._courier,
            engine=engine,
            rng=rng,
            timers=self._timers,
            stats=self.stats,
            packet_size_to=self._connections.packet_size_to,
            shared_memory=self._shared_memory,
            on_digest_needed=lambda each: self._events.append(events.DigestNeeded(each)),
        )
        self._chains = self._new_chains()
        self._messages = UserMessages(
            settings.instance_index,
            courier=self._courier,
            outgoing=self._outgoing,
            stats=self.stats,
            emit=self._events.append,
        )
        self._incoming = self._new_incoming(engine, allocate)
        self._dispatch = self._new_dispatch(engine)

    def _new_chains(self) -> Chains:
        return Chains(
            outgoing=self._outgoing,
            courier=self._courier,
            timers=self._timers,
            stats=self.stats,
            is_connected=self.is_connected,
            listener=self,
        )

    def _new_incoming(
        self, engine: EnginePort, allocate: Callable[[int], Buffer]
    ) -> IncomingBuffers:
        budget = IncomingBudget(self.settings.memory_budget // 2)
        timers = self._timers
        store = IncomingStore(
            budget=budget,
            engine=engine,
            timers=timers,
            allocate=allocate,
            shared_memory=self._shared_memory,
        )
        replies = BufferReplies(self._courier, self.stats)
        self._relays = Relays(
            outgoing=self._outgoing,
            replies=replies,
            stats=self.stats,
            is_connected=self.is_connected,
        )
        return IncomingBuffers(
            store=store,
            claims=Claims(timers, connection_timeout=self.settings.message_timeout),
            replies=replies,
            relays=self._relays,
            engine=engine,
            shared_memory=self._shared_memory,
            stats=self.stats,
            emit=self._events.append,
            on_message_buffer=lambda buffer, now: self._dispatch.on_message_buffer(buffer, now),
        )

    def _new_dispatch(self, engine: EnginePort) -> Dispatch:
        return Dispatch(
            self.settings.instance_index,
            engine=engine,
            connections=self._connections,
            courier=self._courier,
            incoming=self._incoming,
            outgoing=self._outgoing,
            shared_memory=self._shared_memory,
            chains=self._chains,
            stats=self.stats,
            emit=self._events.append,
        )

    # Members

    def add_member(self, peer: int, address: Address, now: float) -> None:
        """Begin to connect to a peer, or change where it is."""
        self._check_open()
        self._connections.add(peer, address, now)

    def remove_member(self, peer: int, now: float) -> None:
        """Forget a peer; what is in transfer with it fails with PeerLost."""
        self._connections.remove(peer, now)

    def is_connected(self, peer: int) -> bool:
        return self._connections.is_connected(peer)

    @property
    def members(self) -> list[int]:
        return sorted(self._connections.peers)

    def peer_info(self, peer: int) -> PeerInfo:
        """Raises KeyError when `peer` is not a member."""
        return self._connections.peers[peer].info()

    # Messages

    def send_message(
        self,
        peer: int,
        message_type: MessageType,
        payload: bytes,
        *,
        require_ack: bool = True,
        now: float,
    ) -> int:
        """Send a message of any size up to 64 MiB; return its id.

        With `require_ack` one MessageDelivered or MessageFailed follows, and the message waits for
        the connection; without it nothing follows. Raises LocalProtocolError.
        """
        self._check_open()
        return self._messages.send(peer, message_type, payload, require_ack=require_ack, now=now)

    def broadcast_message(
        self, message_type: MessageType, payload: bytes, *, require_ack: bool = True, now: float
    ) -> dict[int, int]:
        """Send a message to every member; return the message ids by peer."""
        self._check_open()
        return self._messages.broadcast(
            self.members, message_type, payload, require_ack=require_ack, now=now
        )

    def cancel_message(self, message_id: int, now: float) -> bool:
        """Give a message up: it ends in MessageFailed(TransferCancelled). False: it is over."""
        return self._messages.cancel(message_id, now)

    # Transfers, sending side

    def send_buffer(
        self,
        peer: int,
        key: TransferKey,
        payload: PayloadParts,
        *,
        digest: bytes | None,
        message_type: MessageType,
        now: float,
    ) -> int:
        """Send one payload; one BufferSent or BufferFailed with the returned id follows.

        `digest` is the xxh3_128 of the payload, whose memory is read until then. None is for a peer
        that shares memory: DigestNeeded follows if it is needed all the same. Raises
        LocalProtocolError.
        """
        self._check_sendable([peer], key, message_type)
        owned = OutgoingPayload(payload.prefix, payload.body, digest)
        return self._outgoing.send(
            peer, key, owned, message_type=message_type, listener=self, now=now
        )

    def provide_digest(self, buffer_id: int, digest: bytes, now: float) -> None:
        """The answer to DigestNeeded; too late is no harm."""
        self._outgoing.provide_digest(buffer_id, digest, now)

    def send_chain(
        self,
        peers: Sequence[int],
        key: TransferKey,
        payload: PayloadParts,
        *,
        digest: bytes,
        message_type: MessageType,
        now: float,
    ) -> dict[int, int]:
        """Send one payload to several peers, each of which sends it on to the next while it
        arrives; return their transfer ids, for each of which one event follows as after
        `send_buffer`. A peer that drops out costs the others nothing but time."""
        self._check_sendable(peers, key, message_type)
        owned = OutgoingPayload(payload.prefix, payload.body, digest)
        return self._chains.send(peers, key, owned, message_type=message_type, now=now)

    def _check_sendable(
        self, peers: Sequence[int], key: TransferKey, message_type: MessageType
    ) -> None:
        self._check_open()
        if message_type not in BUFFER_TYPES:
            raise LocalProtocolError(f"{message_type.name} does not announce a buffer")
        for peer in peers:
            if peer not in self._connections.peers or peers.count(peer) > 1:
                raise LocalProtocolError(
                    f"instance {peer} is not a peer of this instance, or twice"
                )
        if key.source != self.settings.instance_index:
            raise LocalProtocolError(f"{key} cannot be sent by {self.settings.instance_index}")

    def cancel_buffer(self, buffer_id: int, now: float) -> bool:
        """Give a transfer up: it ends in BufferFailed(TransferCancelled). False: it is over."""
        text = "cancelled by the sender"
        return self._outgoing.cancel(buffer_id, text, now) or self._chains.cancel(
            buffer_id, text, now
        )

    # Transfers, receiving side

    def claim(self, key: TransferKey, now: float) -> None:
        """Somebody waits for this key: BufferArrived or IncomingFailed follows, or came already."""
        self._check_open()
        self._incoming.claim(key, now, is_connected=self.is_connected(key.source))

    def unclaim(self, key: TransferKey, now: float) -> None:
        """Nobody waits for this key any more; what arrives is kept for a while."""
        self._incoming.unclaim(key, now)

    def confirm_buffer(self, buffer_id: int, now: float) -> bool:
        """The digest of an arrived buffer matches. False: the buffer is gone."""
        return self._incoming.confirm(buffer_id, now)

    def is_relaying(self, buffer_id: int) -> bool:
        """Whether the memory of a confirmed buffer is still read: RelayEnded follows then."""
        return self._incoming.is_relaying(buffer_id)

    def reject_buffer(self, buffer_id: int, reason: str, now: float) -> bool:
        """The digest does not match: let go of the memory; it is sent once more.

        After the second time IncomingFailed(CorruptPayload) follows. False: the buffer is gone.
        """
        return self._incoming.reject(buffer_id, reason, now)

    def release_buffer(self, buffer_id: int, now: float) -> bool:
        """Give the share of the budget back: the memory is the layer above's alone from now on."""
        return self._incoming.release(buffer_id, now)

    def end_job(self, job_id: str, now: float) -> None:
        """Cancel the job's transfers, drop its unclaimed buffers, refuse those that still come."""
        self._outgoing.end_job(job_id, now)
        self._chains.end_job(job_id, now)
        self._incoming.end_job(job_id, now)

    # Driving

    def handle_engine_events(self, now: float) -> None:
        """Act on all that the engine and the shared memory have to tell."""
        if not self._is_closed:
            self._dispatch.handle_engine_events(now)

    def next_timer(self) -> float | None:
        """When `handle_timers` is due; None: not before something else happens."""
        return self._timers.next_at

    def handle_timers(self, now: float) -> None:
        while (timer := self._timers.pop_due(now)) is not None:
            self._dispatch.on_timer(*timer, now)

    def next_event(self) -> events.Event | None:
        return self._events.popleft() if self._events else None

    @property
    def has_transfers(self) -> bool:
        """Whether a payload is on its way, in or out; not one that only waits for memory."""
        return self._outgoing.is_sending or self._incoming.is_receiving

    @property
    def has_unanswered(self) -> bool:
        """Whether a connected peer still owes the ACK of a message."""
        peers = self._connections.peers.values()
        return any(len(peer.outbox) for peer in peers if self.is_connected(peer.index))

    def close(self, now: float) -> None:
        """Say GOODBYE; everything that is under way fails with TransferCancelled.

        The engine still has to send the GOODBYEs. Closing twice is fine.
        """
        if self._is_closed:
            return
        self._is_closed = True
        error = TransferCancelled("this instance is closing")
        self._outgoing.close(error, now)
        self._chains.close(error, now)
        self._incoming.close(error, now)
        goodbye = _GOODBYE.pack()
        for peer in self._connections.peers.values():
            peer.outbox.on_lost(error, now)
            self._courier.send_control_once(peer.index, MessageType.GOODBYE, goodbye)
        self._connections.close()

    def farewells(self) -> list[tuple[int, bytes]]:
        """By peer the GOODBYE that `close` would send; for any thread, changes nothing. For where
        the control thread does not come to closing."""
        own = self.settings.instance_index
        return [
            (
                peer.index,
                Message(0, MessageType.GOODBYE, own, peer.index, payload=_GOODBYE.pack()).pack(),
            )
            for peer in list(self._connections.peers.values())
            if peer.connection is not None
        ]

    def _check_open(self) -> None:
        if self._is_closed:
            raise LocalProtocolError("this instance is closing")

    # What the parts report

    def on_connected(self, peer: Peer, now: float) -> None:
        assert peer.connection is not None
        ids = peer.connection
        proof = PeerProof(ids.boot_id, ids.local_session, ids.remote_session)
        self._shared_memory.connect_peer(peer.index, proof, now)
        peer.outbox.on_connected(now)
        self._outgoing.on_connected(peer.index, now)

    def on_lost(self, peer: Peer, error: PeerLost, now: float) -> None:
        self._outgoing.on_lost(peer.index, error, now)
        self._chains.on_lost(peer.index, error, now)
        self._incoming.on_lost(peer.index, error, now)
        self._shared_memory.disconnect_peer(peer.index)

    def on_transfer_done(self, transfer_id: int, now: float) -> None:
        self._events.append(events.BufferSent(transfer_id))

    def on_transfer_failed(self, transfer_id: int, error: ClusterError, now: float) -> None:
        self._events.append(events.BufferFailed(transfer_id, error))

    def _send_heartbeat(self, peer: int) -> None:
        self.stats.heartbeats_sent += 1
        self._courier.send_control_once(peer, MessageType.HEARTBEAT)
