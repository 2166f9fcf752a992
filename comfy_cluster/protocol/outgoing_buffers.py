"""Buffers that this instance sends: announced, accepted, sent, confirmed by the receiver.

How it works: a transfer waits for the connection, since the chunk size depends on the path. Then it
is announced; a small payload travels inside the announcement. The receiver accepts when it has
memory, which may take as long as it likes while the connection lasts. Accepted buffers go to the
engine within the outgoing budget: they always get through, so waiting for them is short. The
transfer ends when the receiver confirms the digest. Each transfer ends in exactly one call of its
listener.

To a peer that shares memory a payload goes without chunks and digest, in the same steps. Only the
receiver decides that a payload did not come that way, since it alone knows what came: then it is
announced once more for UDP, and `on_digest_needed` asks for the digest.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from comfy_cluster.errors import (
    ClusterError,
    CorruptPayload,
    PeerLost,
    TransferCancelled,
    TransferError,
    TransferTimeout,
)
from comfy_cluster.fastpath import MESSAGE_PAYLOAD_LIMIT, chunk_size_for
from comfy_cluster.protocol.budget import OutgoingBudget
from comfy_cluster.protocol.courier import Courier
from comfy_cluster.protocol.engine_port import EnginePort
from comfy_cluster.protocol.outgoing_buffer import (
    OutgoingBuffer,
    OutgoingPayload,
    OutgoingState,
    Sendable,
    TransferListener,
)
from comfy_cluster.protocol.settings import ProtocolSettings
from comfy_cluster.protocol.shared_memory_port import SharedMemoryPort
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.protocol.timers import TimerKind, Timers
from comfy_cluster.wire import (
    LARGEST_ATTEMPT,
    BufferAccept,
    BufferAnnouncement,
    BufferCancel,
    BufferDone,
    BufferFailed,
    FailureCode,
    MessageType,
    Route,
    TransferKey,
)

logger = logging.getLogger("comfy_cluster.protocol")

LARGEST_INLINE = 900  # bytes; with a usual key the announcement still fits one packet
# Bytes from which shared memory is used: below, a transfer is mostly messages, which are the same.
SMALLEST_SHARED = 65_536
_ENVELOPE = 32  # bytes; the other fields of ClusterMessage take 27 at most


class OutgoingBuffers:
    def __init__(
        self,
        *,
        settings: ProtocolSettings,
        budget: OutgoingBudget,
        courier: Courier,
        engine: EnginePort,
        rng: random.Random,
        timers: Timers,
        stats: ProtocolStats,
        packet_size_to: Callable[[int], int],
        shared_memory: SharedMemoryPort,
        on_digest_needed: Callable[[int], None],
    ) -> None:
        """`packet_size_to(peer)`: of its connection; 0 when it is not connected.

        `on_digest_needed(transfer_id)` is answered with `provide_digest`.
        """
        self._settings = settings
        self._budget = budget
        self._courier = courier
        self._engine = engine
        self._timers = timers
        self._stats = stats
        self._packet_size_to = packet_size_to
        self._shared_memory = shared_memory
        self._on_digest_needed = on_digest_needed
        self._transfers: dict[int, OutgoingBuffer] = {}
        self._by_buffer_id: dict[int, OutgoingBuffer] = {}
        self._announcements: dict[int, OutgoingBuffer] = {}
        self._accepted: deque[OutgoingBuffer] = deque()
        # The index of the sender in the top 16 bits makes ids unique in the cluster; the start is
        # far from the ids of an earlier run.
        self._id_base = settings.instance_index << 48
        self._id_counter = rng.getrandbits(48)

    def __len__(self) -> int:
        return len(self._transfers)

    @property
    def is_sending(self) -> bool:
        """Whether a receiver has accepted a payload of this instance that it does not have yet."""
        return self._budget.used > 0

    def send(
        self,
        peer: int,
        key: TransferKey,
        payload: Sendable,
        *,
        message_type: MessageType,
        listener: TransferListener,
        now: float,
        route: Route | None = None,
        attempt: int = 1,
    ) -> int:
        """Begin a transfer; return its id."""
        buffer_id = self.new_buffer_id()
        buffer = OutgoingBuffer(
            buffer_id, buffer_id, peer, key, message_type, payload, listener, route=route
        )
        buffer.attempt = attempt
        self._transfers[buffer_id] = self._by_buffer_id[buffer_id] = buffer
        if self._packet_size_to(peer):
            self._announce(buffer, now)
        else:
            self._timers.set(TimerKind.TRANSFER, buffer_id, now + self._settings.message_timeout)
        return buffer_id

    def cancel(self, transfer_id: int, reason: str, now: float) -> bool:
        """Give a transfer up and tell the receiver. False: it is over already."""
        buffer = self._transfers.get(transfer_id)
        if buffer is None:
            return False
        if buffer.state is not OutgoingState.WAITING:
            cancel = BufferCancel(buffer.buffer_id, reason).pack()
            self._courier.post_control(buffer.peer, MessageType.BUFFER_CANCEL, cancel, now)
        text = f"sending {buffer.key} to instance {buffer.peer} was given up: {reason}"
        self._fail(buffer, TransferCancelled(text, peer=buffer.peer), now)
        return True

    def end_job(self, job_id: str, now: float) -> None:
        """Hops of a route do not end with it: what began them decides."""
        for buffer in list(self._transfers.values()):
            is_message = buffer.message_type is MessageType.MESSAGE_BUFFER
            if buffer.key.job_id == job_id and not is_message and buffer.route is None:
                self.cancel(buffer.transfer_id, f"job {job_id} has ended", now)

    def is_accepted(self, transfer_id: int) -> bool:
        """Whether the receiver has memory for it, and it is sent or soon will be."""
        state = self._transfers[transfer_id].state
        return state in (OutgoingState.ACCEPTED, OutgoingState.SENDING)

    def provide_digest(self, transfer_id: int, digest: bytes, now: float) -> None:
        """The digest of a payload that did not bring it along."""
        buffer = self._transfers.get(transfer_id)
        if buffer is None or not isinstance(buffer.payload, OutgoingPayload):
            return
        buffer.payload = replace(buffer.payload, digest=digest)
        if buffer.state is OutgoingState.WAITING and self._packet_size_to(buffer.peer):
            self._announce(buffer, now)

    # Connections

    def on_connected(self, peer: int, now: float) -> None:
        for buffer in self._transfers_to(peer):
            self._timers.cancel(TimerKind.TRANSFER, buffer.transfer_id)
            self._announce(buffer, now)

    def on_lost(self, peer: int, error: ClusterError, now: float) -> None:
        self._fail_all(self._transfers_to(peer), error, now)

    def close(self, error: ClusterError, now: float) -> None:
        self._fail_all(list(self._transfers.values()), error, now)

    def on_transfer_timer(self, transfer_id: int, now: float) -> None:
        """The peer was not connected in time."""
        buffer = self._transfers.get(transfer_id)
        if buffer is not None:
            seconds = self._settings.message_timeout
            text = (
                f"{buffer.key} was not sent: instance {buffer.peer} is not connected for"
                f" {seconds:g} s"
            )
            self._fail(buffer, TransferTimeout(text, peer=buffer.peer), now)

    def _transfers_to(self, peer: int) -> list[OutgoingBuffer]:
        return [buffer for buffer in self._transfers.values() if buffer.peer == peer]

    # The announcement

    def _announce(self, buffer: OutgoingBuffer, now: float) -> None:
        peer, shared = buffer.peer, self._payload_to_share(buffer)
        buffer.is_shared = shared is not None
        if shared is not None:
            self._shared_memory.open_outgoing(peer, buffer.buffer_id, shared.prefix, shared.body)
        elif buffer.payload.digest is None:
            self._on_digest_needed(buffer.transfer_id)
            return
        buffer.chunk_size = 0 if buffer.is_shared else chunk_size_for(self._packet_size_to(peer))
        buffer.state = OutgoingState.ANNOUNCED
        packet = self._inline_announcement(buffer)
        if packet is None:
            packet = self._announcement(buffer, None)
        else:  # it is there with the message, whatever packets the path carries then
            buffer.chunk_size = 0
        message = self._courier.new_message(buffer.peer, buffer.message_type, packet)
        buffer.announcement_id = message.message_id
        self._announcements[message.message_id] = buffer
        self._courier.post(message, message.pack(), self, now)

    def _payload_to_share(self, buffer: OutgoingBuffer) -> OutgoingPayload | None:
        """None: it goes over UDP. So does a hop of a route, which may have to be sent on."""
        payload = buffer.payload
        if buffer.route is not None or not isinstance(payload, OutgoingPayload):
            return None
        is_message = buffer.message_type is MessageType.MESSAGE_BUFFER
        may_share = buffer.may_share and not is_message and payload.size >= SMALLEST_SHARED
        return payload if may_share and self._shared_memory.is_shared_with(buffer.peer) else None

    def _inline_announcement(self, buffer: OutgoingBuffer) -> bytes | None:
        """The announcement with the payload inside, if that fits one packet."""
        if buffer.route is not None:
            return None
        payload = buffer.payload.inline_payload(LARGEST_INLINE)
        if payload is None:
            return None
        packed = self._announcement(buffer, payload)
        return packed if len(packed) <= MESSAGE_PAYLOAD_LIMIT - _ENVELOPE else None

    def _announcement(self, buffer: OutgoingBuffer, inline_payload: bytes | None) -> bytes:
        return BufferAnnouncement(
            buffer_id=buffer.buffer_id,
            size=buffer.size,
            chunk_size=buffer.chunk_size if inline_payload is None else 0,
            digest=b"" if buffer.is_shared else buffer.payload.digest or b"",
            key=buffer.key,
            inline_payload=inline_payload,
            attempt=buffer.attempt,
            route=buffer.route,
            is_shared=buffer.is_shared,
        ).pack()

    def on_message_delivered(self, message_id: int, now: float) -> None:
        self._announcements.pop(message_id, None)

    def on_message_failed(self, message_id: int, error: ClusterError, now: float) -> None:
        buffer = self._announcements.pop(message_id, None)
        # A lost connection is told to the transfers themselves, by `on_lost`.
        if buffer is not None and not isinstance(error, PeerLost):
            self._fail(buffer, error, now)

    # From the receiver

    def on_accept(self, peer: int, accept: BufferAccept, now: float) -> None:
        buffer = self._of_peer(peer, accept.buffer_id)
        if buffer is None:  # given up meanwhile: the receiver must not wait for it
            cancel = BufferCancel(accept.buffer_id, "not sent any more").pack()
            self._courier.post_control(peer, MessageType.BUFFER_CANCEL, cancel, now)
        elif buffer.state is OutgoingState.ANNOUNCED:
            self._end_announcement(buffer, now)
            buffer.state = OutgoingState.ACCEPTED
            self._accepted.append(buffer)
            self._send_accepted()
            if buffer.state is OutgoingState.ACCEPTED and not buffer.payload.budget_size:
                self._accepted.remove(buffer)  # what takes no budget waits for none
                self._open(buffer)

    def on_done(self, peer: int, done: BufferDone, now: float) -> None:
        buffer = self._of_peer(peer, done.buffer_id)
        if buffer is not None:
            self._stats.buffers_sent += 1
            self._forget(buffer, now)
            self._send_accepted()
            logger.debug("> %d buffer %016x done, %d bytes", peer, buffer.buffer_id, buffer.size)
            buffer.listener.on_transfer_done(buffer.transfer_id, now)

    def on_failed(self, peer: int, failed: BufferFailed, now: float) -> None:
        buffer = self._of_peer(peer, failed.buffer_id)
        if buffer is None:
            return
        text = f"instance {peer} could not take {buffer.key}: {failed.reason or failed.code.name}"
        if failed.code is FailureCode.NO_SHARED_MEMORY and buffer.is_shared:
            self._stats.buffers_unshared += 1
            buffer.may_share = False
            self._send_again(buffer, now)
        elif failed.code is not FailureCode.CORRUPT:
            self._fail(buffer, TransferError(text, peer=peer), now)
        elif buffer.attempt < LARGEST_ATTEMPT and buffer.route is None:
            self._stats.buffers_resent += 1
            buffer.attempt += 1
            self._send_again(buffer, now)
        else:
            self._fail(buffer, CorruptPayload(f"{text} ({buffer.attempt} times)"), now)

    def on_cancel(self, peer: int, cancel: BufferCancel, now: float) -> None:
        buffer = self._of_peer(peer, cancel.buffer_id)
        if buffer is not None:
            text = f"instance {peer} gave up {buffer.key}: {cancel.reason or 'no reason given'}"
            self._fail(buffer, TransferCancelled(text, peer=peer), now)

    def on_packet_size(self, peer: int, packet_size: int, now: float) -> None:
        """Announce anew, in chunks that fit, what was announced in larger ones."""
        largest_chunk = chunk_size_for(packet_size)
        for buffer in self._transfers_to(peer):
            if buffer.state is OutgoingState.WAITING or buffer.chunk_size <= largest_chunk:
                continue
            if buffer.message_type is MessageType.MESSAGE_BUFFER:  # these all have one key
                cancel = BufferCancel(buffer.buffer_id, "sent anew in smaller chunks").pack()
                self._courier.post_control(peer, MessageType.BUFFER_CANCEL, cancel, now)
            if buffer.route is None:
                self._stats.buffers_resent += 1
                self._send_again(buffer, now)
            else:  # the origin of the chain finds another way
                text = f"instance {peer} takes only smaller packets now"
                self._fail(buffer, TransferError(text, peer=peer), now)

    def _of_peer(self, peer: int, buffer_id: int) -> OutgoingBuffer | None:
        buffer = self._by_buffer_id.get(buffer_id)
        return buffer if buffer is not None and buffer.peer == peer else None

    def _send_again(self, buffer: OutgoingBuffer, now: float) -> None:
        self._forget(buffer, now)
        self._send_accepted()
        buffer.buffer_id = self.new_buffer_id()
        self._transfers[buffer.transfer_id] = self._by_buffer_id[buffer.buffer_id] = buffer
        self._announce(buffer, now)

    def _send_accepted(self) -> None:
        while self._accepted and self._budget.has_room(self._accepted[0].payload.budget_size):
            self._open(self._accepted.popleft())

    def _open(self, buffer: OutgoingBuffer) -> None:
        self._budget.take(buffer.payload.budget_size)
        buffer.state = OutgoingState.SENDING
        if buffer.is_shared:
            self._shared_memory.send(buffer.buffer_id)
            return
        try:
            buffer.payload.open(self._engine, buffer.peer, buffer.buffer_id, buffer.chunk_size)
        except ValueError:
            packet_size = int(self._engine.peer_stats(buffer.peer)["packet_size"])
            if buffer.chunk_size <= chunk_size_for(packet_size):
                raise
            # The path carries smaller packets since a moment ago: `on_packet_size` is told next.

    # Ends

    def _fail(self, buffer: OutgoingBuffer, error: ClusterError, now: float) -> None:
        self._fail_all([buffer], error, now)

    def _fail_all(self, buffers: list[OutgoingBuffer], error: ClusterError, now: float) -> None:
        """Forget all of them before the budget is passed on: not to a buffer of a lost peer."""
        for buffer in buffers:
            self._forget(buffer, now)
        self._send_accepted()
        self._stats.buffers_failed += len(buffers)
        for buffer in buffers:
            buffer.listener.on_transfer_failed(buffer.transfer_id, error, now)

    def _forget(self, buffer: OutgoingBuffer, now: float) -> None:
        """The engine touches the payload no more after this."""
        del self._transfers[buffer.transfer_id], self._by_buffer_id[buffer.buffer_id]
        self._timers.cancel(TimerKind.TRANSFER, buffer.transfer_id)
        self._end_announcement(buffer, now)
        if buffer.state is OutgoingState.ACCEPTED:
            self._accepted.remove(buffer)
        elif buffer.state is OutgoingState.SENDING:
            if not buffer.is_shared:
                self._engine.close_outgoing(buffer.buffer_id)
            self._budget.give_back(buffer.payload.budget_size)
        if buffer.is_shared:
            self._shared_memory.close_outgoing(buffer.buffer_id)
        buffer.is_shared = False
        buffer.state = OutgoingState.WAITING

    def _end_announcement(self, buffer: OutgoingBuffer, now: float) -> None:
        """The receiver's answer says that the announcement arrived, whatever became of its ACK."""
        if self._announcements.pop(buffer.announcement_id, None) is not None:
            self._courier.cancel(buffer.peer, buffer.announcement_id, now)

    def new_buffer_id(self) -> int:
        """An id that no other buffer of the cluster has."""
        while True:
            self._id_counter = (self._id_counter + 1) & ((1 << 48) - 1)
            buffer_id = self._id_base | self._id_counter
            if buffer_id and buffer_id not in self._by_buffer_id:
                return buffer_id
