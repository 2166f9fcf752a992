"""Buffers that peers announce to this instance: from the announcement to the release of memory.

How it works: an announced buffer is queued until the budget has memory for it. Then the engine is
given the memory, and the sender is told to send. The layer above is handed the complete buffer,
verifies its digest, and confirms or rejects it; a confirmed one holds its share of the budget until
it is released. An arrived buffer that nobody claims expires, and a later claim of its key fails;
the others end with their peer's connection, with their job, or by a cancel of the sender.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from comfy_cluster.errors import ClusterError, CorruptPayload, TransferCancelled, TransferTimeout
from comfy_cluster.protocol import events
from comfy_cluster.protocol.buffer_replies import BufferReplies
from comfy_cluster.protocol.claims import Claims
from comfy_cluster.protocol.engine_port import EnginePort
from comfy_cluster.protocol.incoming_buffer import IncomingBuffer, IncomingState
from comfy_cluster.protocol.incoming_store import (
    LARGEST_EXPIRED,
    UNCLAIMED_TIMEOUT,
    IncomingStore,
)
from comfy_cluster.protocol.recent import RecentSet
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.wire import (
    LARGEST_ATTEMPT,
    BufferAnnouncement,
    BufferCancel,
    FailureCode,
    MessageType,
    TransferKey,
)

logger = logging.getLogger("comfy_cluster.protocol")

ARRIVED, HELD = IncomingState.ARRIVED, IncomingState.HELD


class IncomingBuffers:
    """`on_message_buffer` is handed the buffers that hold one large message."""

    def __init__(
        self,
        *,
        store: IncomingStore,
        claims: Claims,
        replies: BufferReplies,
        engine: EnginePort,
        stats: ProtocolStats,
        emit: Callable[[events.Event], None],
        on_message_buffer: Callable[[IncomingBuffer, float], None],
    ) -> None:
        self._store = store
        self._claims = claims
        self._replies = replies
        self._engine = engine
        self._stats = stats
        self._emit = emit
        self._on_message_buffer = on_message_buffer
        self._ended_jobs: RecentSet[str] = RecentSet()
        self._cancelled_early: RecentSet[int] = RecentSet()
        self._expired: RecentSet[TransferKey] = RecentSet(LARGEST_EXPIRED)

    # From the peer

    def on_announcement(
        self, peer: int, message_type: MessageType, announcement: BufferAnnouncement, now: float
    ) -> None:
        buffer_id, key = announcement.buffer_id, announcement.key
        is_message = message_type is MessageType.MESSAGE_BUFFER
        is_foreign = buffer_id >> 48 != peer or key.source != peer
        if is_foreign or buffer_id in self._store:
            self._stats.messages_malformed += 1
        elif buffer_id in self._cancelled_early:
            self._cancelled_early.discard(buffer_id)
        elif key.job_id in self._ended_jobs and not is_message:
            self._replies.cancel(peer, buffer_id, f"job {key.job_id} has ended there", now)
        else:
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
            self._replies.refuse(peer, announcement.buffer_id, code, text, now)
        else:
            self._expired.discard(announcement.key)
            buffer = self._store.add(peer, message_type, announcement, is_claimed=is_claimed)
            self._begin(buffer, now)

    def _begin(self, buffer: IncomingBuffer, now: float) -> None:
        payload = buffer.announcement.inline_payload
        if payload is None:
            self._store.queue.add(buffer)
            self.admit(now)
        elif self._has_memory(buffer, now) and buffer.memory is not None:
            memoryview(buffer.memory).cast("B")[: buffer.size] = payload
            self._on_arrived(buffer, now)

    def on_complete(self, buffer_id: int, now: float) -> None:
        """The engine placed the last chunk."""
        buffer = self._store.get(buffer_id, IncomingState.RECEIVING)
        if buffer is not None:
            self._store.queue.on_closed(buffer.peer)
            self._on_arrived(buffer, now)
            self.admit(now)

    def on_cancel(self, peer: int, cancel: BufferCancel, now: float) -> None:
        """The sender gave the buffer up."""
        buffer = self._store.get(cancel.buffer_id)
        if buffer is None and cancel.buffer_id >> 48 == peer:
            self._cancelled_early.add(cancel.buffer_id)  # its announcement may still come
        elif buffer is not None and buffer.peer == peer and buffer.state is not HELD:
            text = f"instance {peer} gave up {buffer.key}: {cancel.reason or 'no reason given'}"
            self._fail(buffer, TransferCancelled(text, peer=peer))
            self.admit(now)

    def on_lost(self, peer: int, error: ClusterError, now: float) -> None:
        """What is complete stays; all else of this peer, and claims for it, fail."""
        for buffer in self._store.in_states(*IncomingState):
            if buffer.peer != peer:
                continue
            if buffer.state in (ARRIVED, HELD):
                buffer.is_orphan = True
            else:
                self._fail(buffer, error)
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
        self._engine.close_incoming(buffer_id)
        self._replies.done(buffer.peer, buffer_id, now)
        self._store.set_unclaimed_timer(buffer, now)
        return True

    def reject(self, buffer_id: int, reason: str, now: float) -> bool:
        """The digest does not match: the sender sends it once more, if it can.

        False: the buffer is gone.
        """
        buffer = self._store.get(buffer_id, ARRIVED)
        if buffer is None:
            return False
        self._replies.corrupt(buffer.peer, buffer_id, reason, now)
        attempt = buffer.announcement.attempt
        if attempt < LARGEST_ATTEMPT and not buffer.is_orphan:
            self._store.remove(buffer)
        else:
            gone = ", and its sender is gone" if buffer.is_orphan else ""
            text = f"{buffer.key} arrived damaged (attempt {attempt}{gone}): {reason}"
            self._fail(buffer, CorruptPayload(text))
        self.admit(now)
        return True

    def release(self, buffer_id: int, now: float) -> bool:
        """The memory is no longer the transfer's: its share goes to the next one."""
        buffer = self._store.get(buffer_id, ARRIVED, HELD)
        if buffer is None:
            return False
        if buffer.state is ARRIVED:
            self._replies.cancel(buffer.peer, buffer_id, "it is not wanted any more", now)
        self._store.remove(buffer)
        if not self._store.has_key(buffer.key):
            self._claims.discard(buffer.key)
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
                self._replies.cancel(buffer.peer, buffer.buffer_id, text, now)
                self._fail(buffer, error)
            elif not buffer.is_claimed:
                self._fail(buffer, error)
        for key in self._claims.of_job(job_id):
            if not self._store.has_key(key):
                self._fail_claim(key, error)
        self.admit(now)

    def close(self, error: ClusterError) -> None:
        """Everything fails, whatever its state; peers are told by GOODBYE."""
        for buffer in self._store.in_states(*IncomingState):
            self._fail(buffer, error)
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
        self._fail(buffer, error)
        if not self._store.has_key(buffer.key):
            self._expired.add(buffer.key)
        self.admit(now)

    # Memory

    def admit(self, now: float) -> None:
        """Give memory to as many waiting buffers as the budget allows."""
        while (buffer := self._store.queue.pop_next()) is not None:
            if self._has_memory(buffer, now) and self._is_opened(buffer, now):
                self._replies.accept(buffer.peer, buffer.buffer_id, now)

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
        self._replies.refuse(buffer.peer, buffer.buffer_id, code, text, now)
        self._fail(buffer, TransferCancelled(text, peer=buffer.peer))

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

    def _fail(self, buffer: IncomingBuffer, error: ClusterError) -> None:
        """Forget a buffer, and tell the layer above if it waits for it or has seen it."""
        was_seen = buffer.state in (ARRIVED, HELD) and buffer.memory is not None
        self._store.remove(buffer)
        if buffer.is_message:
            return
        if not self._store.has_key(buffer.key):
            self._claims.discard(buffer.key)
        if was_seen or buffer.is_claimed:
            buffer_id = buffer.buffer_id if was_seen else None
            self._emit(events.IncomingFailed(buffer.key, buffer.peer, error, buffer_id))

    def _fail_claim(self, key: TransferKey, error: ClusterError) -> None:
        self._claims.discard(key)
        self._emit(events.IncomingFailed(key, key.source, error))


def _expiry_of(key: TransferKey) -> TransferTimeout:
    text = f"{key} arrived, and was dropped when nobody had asked for it for"
    return TransferTimeout(f"{text} {UNCLAIMED_TIMEOUT:g} s", peer=key.source)
