"""Buffers that peers announce to this instance: from the announcement to the release of memory.

How it works: an announced buffer is queued until the budget has memory for it. Then the engine is
given the memory, and the sender is told to send; a shared payload brings its memory along. The
layer above is handed the complete buffer, verifies its digest, and confirms or rejects it; a
confirmed one holds its share of the budget until it is released. An arrived buffer that nobody
claims expires, and a later claim of its key fails; the others end with their peer's connection,
with their job, or by a cancel of the sender.
A buffer that came over a route is sent on meanwhile (`relays.py`), and may come by another route
if one breaks (`incoming_routes.py`): its claim fails only when its source is lost or gives it up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from comfy_cluster.errors import ClusterError, CorruptPayload, TransferCancelled, TransferTimeout
from comfy_cluster.protocol import events
from comfy_cluster.protocol.buffer_replies import BufferReplies
from comfy_cluster.protocol.claims import Claims
from comfy_cluster.protocol.engine_port import EnginePort
from comfy_cluster.protocol.incoming_buffer import IncomingBuffer, IncomingState
from comfy_cluster.protocol.incoming_routes import IncomingRoutes
from comfy_cluster.protocol.incoming_store import (
    LARGEST_EXPIRED,
    UNCLAIMED_TIMEOUT,
    IncomingStore,
)
from comfy_cluster.protocol.recent import RecentSet
from comfy_cluster.protocol.relays import Relays
from comfy_cluster.protocol.shared_memory_port import SharedMemoryPort
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.wire import (
    LARGEST_ATTEMPT,
    BufferAnnouncement,
    BufferCancel,
    FailureCode,
    MessageType,
    TransferKey,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

logger = logging.getLogger("comfy_cluster.protocol")

QUEUED, ARRIVED, HELD = IncomingState.QUEUED, IncomingState.ARRIVED, IncomingState.HELD


class IncomingBuffers:
    """`on_message_buffer` is handed the buffers that hold one large message."""

    def __init__(
        self,
        *,
        store: IncomingStore,
        claims: Claims,
        replies: BufferReplies,
        relays: Relays,
        engine: EnginePort,
        shared_memory: SharedMemoryPort,
        stats: ProtocolStats,
        emit: Callable[[events.Event], None],
        on_message_buffer: Callable[[IncomingBuffer, float], None],
    ) -> None:
        self._store = store
        self._claims = claims
        self._replies = replies
        self._relays = relays
        self._relays.on_over = self._on_relay_over
        self._routes = IncomingRoutes(replies)
        self._engine = engine
        self._shared_memory = shared_memory
        self._stats = stats
        self._emit = emit
        self._on_message_buffer = on_message_buffer
        self._ended_jobs: RecentSet[str] = RecentSet()
        self._cancelled_early: RecentSet[int] = RecentSet()
        self._returning: RecentSet[TransferKey] = RecentSet()
        self._expired: RecentSet[TransferKey] = RecentSet(LARGEST_EXPIRED)

    @property
    def is_receiving(self) -> bool:
        """Whether a buffer has memory and is not complete."""
        return self._store.queue.has_open

    # From the peer

    def on_announcement(
        self, peer: int, message_type: MessageType, announcement: BufferAnnouncement, now: float
    ) -> None:
        buffer_id, key = announcement.buffer_id, announcement.key
        is_message = message_type is MessageType.MESSAGE_BUFFER
        route = announcement.route
        owner = buffer_id if route is None else route.payload_id
        is_foreign = buffer_id >> 48 != peer or key.source != owner >> 48
        if is_foreign or buffer_id in self._store:
            self._stats.messages_malformed += 1
        elif buffer_id in self._cancelled_early:
            self._cancelled_early.discard(buffer_id)
        elif self._routes.is_answered(peer, announcement, now):
            pass
        elif key.job_id in self._ended_jobs and not is_message:
            self._replies.cancel(peer, announcement, f"job {key.job_id} has ended there", now)
        else:
            older = None if route is None else self._routes.get(route.payload_id)
            if older is not None:
                self._replies.leave(older.peer, older.buffer_id, "it comes another way", now)
                self._drop_until_it_returns(older, now)
            is_claimed = is_message or key in self._claims
            self._take_on(peer, message_type, announcement, is_claimed=is_claimed, now=now)

    def _take_on(
        self,
        peer: int,
        message_type: MessageType,
        announcement: BufferAnnouncement,
        *,
        is_claimed: bool,
        now: float,
    ) -> None:
        """Keep an announced buffer, if there are not too many of its peer."""
        text = ""
        if self._store.queue.is_full(peer):
            text = "too many announced buffers wait there already"
        elif not is_claimed and self._store.has_many_unclaimed(peer):
            text = "too many buffers are there that nobody asked for"
        if text:
            code = FailureCode.TOO_MANY
            self._replies.refuse(peer, announcement, code, text, now)
        else:
            self._expired.discard(announcement.key)
            is_message = message_type is MessageType.MESSAGE_BUFFER
            if not is_message and self._store.drop_larger_chunks(peer, announcement):
                self._returning.add(announcement.key)
            buffer = self._store.add(peer, message_type, announcement, is_claimed=is_claimed)
            buffer.is_returning = not is_message and announcement.key in self._returning
            self._returning.discard(announcement.key)
            self._routes.add(buffer)
            self._begin(buffer, now)

    def _begin(self, buffer: IncomingBuffer, now: float) -> None:
        payload = buffer.announcement.inline_payload
        if payload is None:
            self._store.queue.add(buffer)
            self.admit(now)
            if buffer.state is QUEUED and buffer.is_to_relay:
                self._store.set_relay_timer(buffer, now)
        elif self._has_memory(buffer, now) and buffer.memory is not None:
            memoryview(buffer.memory).cast("B")[: buffer.size] = payload
            self._on_arrived(buffer, now)

    def on_complete(self, buffer_id: int, now: float) -> None:
        """The engine placed the last chunk."""
        buffer = self._store.get(buffer_id, IncomingState.RECEIVING)
        if buffer is not None and not buffer.is_shared:
            self._on_complete(buffer, now)

    def on_shared_arrived(self, buffer_id: int, memory: Buffer, now: float) -> None:
        """The payload came through shared memory."""
        buffer = self._store.get(buffer_id, IncomingState.RECEIVING)
        if buffer is not None and buffer.is_shared:
            buffer.memory = memory
            self._on_complete(buffer, now)

    def on_shared_failed(self, buffer_id: int, reason: str, now: float) -> None:
        """It will not come that way: whoever waits for it goes on waiting, for UDP to bring it."""
        buffer = self._store.get(buffer_id, IncomingState.RECEIVING)
        if buffer is not None and buffer.is_shared:
            self._replies.not_shared(buffer.peer, buffer.announcement, reason, now)
            self._drop_until_it_returns(buffer, now)
            self.admit(now)

    def _on_complete(self, buffer: IncomingBuffer, now: float) -> None:
        self._store.queue.on_closed(buffer.peer)
        self._on_arrived(buffer, now)
        self.admit(now)

    def on_cancel(self, peer: int, cancel: BufferCancel, now: float) -> None:
        """The sender gave the buffer up; or its origin, by the name of the payload."""
        name = cancel.buffer_id
        buffer = self._store.get(name) or self._routes.get(name)
        if buffer is None:
            if name >> 48 == peer and not self._routes.had(name):
                self._on_early_cancel(peer, cancel)
        elif buffer.state is HELD:
            return
        elif buffer.peer == peer and buffer.is_second_hand:
            if buffer.state is not ARRIVED:  # complete, it needs nobody
                self._remove(buffer, now)
        elif peer in (buffer.peer, buffer.key.source):
            if buffer.is_second_hand:
                text = "its origin gave it up"
                self._replies.leave(buffer.peer, buffer.buffer_id, text, now)
            self._fail(buffer, _given_up(peer, buffer.key, cancel), now)
        self.admit(now)

    def _on_early_cancel(self, peer: int, cancel: BufferCancel) -> None:
        """Its announcement may still come; or it was to come over a route, and does no more."""
        self._cancelled_early.add(cancel.buffer_id)
        self._routes.on_given_up(cancel.buffer_id)
        key = cancel.key
        if key is None or key.source != peer or key not in self._claims:
            return
        if not self._store.has_key(key):
            self._fail_claim(key, _given_up(peer, key, cancel))

    def on_lost(self, peer: int, error: ClusterError, now: float) -> None:
        """What is complete stays; all else from this peer, and claims for it, fail."""
        for buffer in self._store.in_states(*IncomingState):
            is_source = buffer.key.source == peer
            if buffer.state in (ARRIVED, HELD):
                buffer.is_orphan |= is_source
            elif is_source:
                self._replies.leave(buffer.peer, buffer.buffer_id, "its source is lost", now)
                self._fail(buffer, error, now)
            elif buffer.peer == peer:  # the origin finds another route
                self._drop_until_it_returns(buffer, now)
                self._replies.report(buffer.announcement, FailureCode.ROUTE_LOST, now)
        for key in self._claims.of_source(peer):
            if not self._store.has_key(key):
                self._fail_claim(key, error)
        self.admit(now)

    # From the layer above

    def claim(self, key: TransferKey, now: float, *, is_connected: bool) -> None:
        """Somebody waits for this key. Its job is under way again if it had ended."""
        if key in self._claims:
            return
        if key in self._expired:  # its source was told that all is well, and sends nothing more
            self._emit(events.IncomingFailed(key, key.source, _expiry_of(key)))
            return
        self._claims.add(key, now, is_connected=is_connected)
        self._ended_jobs.discard(key.job_id)
        self._store.set_claimed(key, True, now)
        self.admit(now)

    def unclaim(self, key: TransferKey, now: float) -> None:
        if key in self._claims:
            self._claims.discard(key)
            self._store.set_claimed(key, False, now)
            self.admit(now)

    def confirm(self, buffer_id: int, now: float) -> bool:
        """The digest matches. False: the buffer is gone."""
        buffer = self._store.get(buffer_id, ARRIVED)
        if buffer is None:
            return False
        buffer.state = HELD
        self._store.close(buffer)
        self._routes.on_verified(buffer, now)
        self._store.set_unclaimed_timer(buffer, now)
        if self.is_relaying(buffer_id):
            self._store.set_relay_timer(buffer, now)
        return True

    def is_relaying(self, buffer_id: int) -> bool:
        """Whether the memory of a confirmed buffer is still read, and must not be changed."""
        return self._relays.is_under_way(buffer_id)

    def reject(self, buffer_id: int, reason: str, now: float) -> bool:
        """The digest does not match: the sender sends it once more, if it can.

        False: the buffer is gone.
        """
        buffer = self._store.get(buffer_id, ARRIVED)
        if buffer is None:
            return False
        self._replies.corrupt(buffer.peer, buffer.announcement, reason, now)
        attempt = buffer.announcement.attempt
        if buffer.successor is not None:
            self._drop_until_it_returns(buffer, now)
            announced = (buffer.successor[0], buffer.message_type, buffer.successor[1])
            self._take_on(*announced, is_claimed=buffer.key in self._claims, now=now)
        elif attempt < LARGEST_ATTEMPT and not buffer.is_orphan:
            self._drop_until_it_returns(buffer, now)
        else:
            gone = ", and its sender is gone" if buffer.is_orphan else ""
            text = f"{buffer.key} arrived damaged (attempt {attempt}{gone}): {reason}"
            self._fail(buffer, CorruptPayload(text), now)
        self.admit(now)
        return True

    def release(self, buffer_id: int, now: float) -> bool:
        """The memory is no longer the transfer's: its share goes to the next one."""
        buffer = self._store.get(buffer_id, ARRIVED, HELD)
        if buffer is None:
            return False
        if buffer.state is ARRIVED:
            text = "it is not wanted any more"
            self._replies.cancel(buffer.peer, buffer.announcement, text, now)
        if buffer.state is HELD and self.is_relaying(buffer_id):
            buffer.is_released = True  # the memory is still read
        else:
            self._forget(buffer, now)
        self.admit(now)
        return True

    def end_job(self, job_id: str, now: float) -> None:
        """Drop what nobody has taken; refuse what still comes."""
        self._ended_jobs.add(job_id)
        for key in [key for key in self._expired if key.job_id == job_id]:
            self._expired.discard(key)
        error = TransferCancelled(f"job {job_id} has ended on this instance")
        for buffer in self._store.in_states(*IncomingState):
            if buffer.key.job_id != job_id or buffer.is_message:
                continue
            if buffer.state is not HELD:
                text = f"job {job_id} has ended there"
                self._replies.cancel(buffer.peer, buffer.announcement, text, now)
                self._fail(buffer, error, now)
            elif not buffer.is_claimed:
                self._fail(buffer, error, now)
        for key in self._claims.of_job(job_id):
            if not self._store.has_key(key):
                self._fail_claim(key, error)
        self.admit(now)

    def close(self, error: ClusterError, now: float) -> None:
        """Everything fails, whatever its state; peers are told by GOODBYE."""
        for buffer in self._store.in_states(*IncomingState):
            self._fail(buffer, error, now)
        for key in self._claims.all():
            self._fail_claim(key, error)

    # Timers

    def on_claim_timer(self, key: TransferKey, error: ClusterError) -> None:
        """The source was not connected in time."""
        if key in self._claims and not self._store.has_key(key):
            self._fail_claim(key, error)

    def on_unclaimed_timer(self, buffer_id: int, now: float) -> None:
        buffer = self._store.get(buffer_id, HELD)
        if buffer is None:
            return
        self._stats.buffers_expired += 1
        error = _expiry_of(buffer.key)
        logger.warning("! %d %s", buffer.peer, error)
        self._fail(buffer, error, now)
        if not self._store.has_key(buffer.key):
            self._expired.add(buffer.key)
        self.admit(now)

    def on_relay_timer(self, buffer_id: int, now: float) -> None:
        """Others wait here for a relay, or elsewhere for what this instance should relay."""
        buffer = self._store.get(buffer_id, QUEUED, HELD)
        if buffer is None:
            return
        if buffer.state is QUEUED and buffer.is_claimed:  # it gets memory by itself
            self._store.set_relay_timer(buffer, now)
        elif buffer.state is QUEUED:
            self._relays.refuse(buffer, now)
        elif self.is_relaying(buffer_id) and self._relays.is_accepted(buffer_id):
            self._emit(events.RelayLate(buffer_id))
        elif self.is_relaying(buffer_id):
            self._relays.end(buffer, now)
            self._on_relay_over(buffer, now)

    def _on_relay_over(self, buffer: IncomingBuffer, now: float) -> None:
        if buffer.is_released:
            self._forget(buffer, now)
            self.admit(now)
        elif buffer.state is HELD:
            self._emit(events.RelayEnded(buffer.buffer_id))

    # Memory

    def admit(self, now: float) -> None:
        """Give memory to as many waiting buffers as the budget allows."""
        while (buffer := self._store.queue.pop_next()) is not None:
            if buffer.is_shared:
                self._admit_shared(buffer, now)
            elif self._has_memory(buffer, now) and self._is_opened(buffer, now):
                self._replies.accept(buffer.peer, buffer.buffer_id, now)
                self._relays.begin(buffer, now)

    def _admit_shared(self, buffer: IncomingBuffer, now: float) -> None:
        peer, buffer_id = buffer.peer, buffer.buffer_id
        self._store.take_budget(buffer)
        if self._shared_memory.is_shared_with(peer):
            self._shared_memory.open_incoming(peer, buffer_id, buffer.size)
            self._replies.accept(peer, buffer_id, now)
        else:
            reason = "the instances share no memory"
            self._replies.not_shared(peer, buffer.announcement, reason, now)
            self._remove(buffer, now)

    def _has_memory(self, buffer: IncomingBuffer, now: float) -> bool:
        """Give the buffer its memory; it fails when there is none."""
        if self._store.give_memory(buffer) is not None:
            return True
        self._refuse_for_memory(buffer, now)
        return False

    def _is_opened(self, buffer: IncomingBuffer, now: float) -> bool:
        """Have the engine receive the buffer; it fails when the engine has no memory to do so."""
        assert buffer.memory is not None
        chunk_size = buffer.announcement.chunk_size
        try:
            self._engine.open_incoming(
                buffer.peer,
                buffer.buffer_id,
                buffer.memory,
                size=buffer.size,
                chunk_size=chunk_size,
            )
        except (MemoryError, ValueError) as error:  # what a peer announces ends no thread
            logger.debug("! %d buffer %016x: %s", buffer.peer, buffer.buffer_id, error)
            self._refuse_for_memory(buffer, now)
            return False
        return True

    def _refuse_for_memory(self, buffer: IncomingBuffer, now: float) -> None:
        text = f"there is no memory for the {buffer.size} bytes of {buffer.key}"
        code = FailureCode.NO_MEMORY
        self._replies.refuse(buffer.peer, buffer.announcement, code, text, now)
        self._fail(buffer, TransferCancelled(text, peer=buffer.key.source), now)

    def _on_arrived(self, buffer: IncomingBuffer, now: float) -> None:
        buffer.state = ARRIVED
        self._stats.buffers_arrived += 1
        logger.debug("< %d buffer %016x, %d bytes", buffer.peer, buffer.buffer_id, buffer.size)
        if buffer.is_message:
            self._on_message_buffer(buffer, now)
            return
        assert buffer.memory is not None
        self._emit(
            events.BufferArrived(
                peer=buffer.peer,
                buffer_id=buffer.buffer_id,
                key=buffer.key,
                message_type=buffer.message_type,
                memory=buffer.memory,
                size=buffer.size,
                digest=buffer.announcement.digest,
            )
        )

    # Ends

    def _fail(self, buffer: IncomingBuffer, error: ClusterError, now: float) -> None:
        """Forget a buffer, and tell the layer above if it waits for it or has seen it."""
        was_seen = buffer.state in (ARRIVED, HELD) and buffer.memory is not None
        if buffer.is_message:
            self._remove(buffer, now)
            return
        self._forget(buffer, now)
        if (was_seen or buffer.is_claimed) and not buffer.is_released:
            buffer_id = buffer.buffer_id if was_seen else None
            self._emit(events.IncomingFailed(buffer.key, buffer.key.source, error, buffer_id))

    def _forget(self, buffer: IncomingBuffer, now: float) -> None:
        """Let go of a buffer and, if no other one has its key, of who waits for it."""
        self._remove(buffer, now)
        if not self._store.has_key(buffer.key):
            self._claims.discard(buffer.key)
            self._returning.discard(buffer.key)

    def _remove(self, buffer: IncomingBuffer, now: float) -> None:
        """Let go of a buffer in any state; who waits for its key still does."""
        self._relays.end(buffer, now)
        self._routes.remove(buffer)
        self._store.remove(buffer)

    def _drop_until_it_returns(self, buffer: IncomingBuffer, now: float) -> None:
        """Its sender, or another one, announces it anew; what took its memory may wait for it."""
        if buffer.state is not QUEUED:
            self._returning.add(buffer.key)
        self._remove(buffer, now)

    def _fail_claim(self, key: TransferKey, error: ClusterError) -> None:
        self._claims.discard(key)
        self._returning.discard(key)
        self._emit(events.IncomingFailed(key, key.source, error))


def _given_up(peer: int, key: TransferKey, cancel: BufferCancel) -> TransferCancelled:
    reason = cancel.reason or "no reason given"
    return TransferCancelled(f"instance {peer} gave up {key}: {reason}", peer=peer)


def _expiry_of(key: TransferKey) -> TransferTimeout:
    text = f"{key} arrived, and was dropped when nobody had asked for it for"
    return TransferTimeout(f"{text} {UNCLAIMED_TIMEOUT:g} s", peer=key.source)
