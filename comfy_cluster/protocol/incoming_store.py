"""All incoming buffers by id and key, with their memory and their share of the budget.

Knows no peer and sends nothing: `incoming_buffers.py` decides what happens, this keeps the books.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from comfy_cluster.protocol.budget import IncomingBudget
from comfy_cluster.protocol.engine_port import EnginePort
from comfy_cluster.protocol.incoming_buffer import IncomingBuffer, IncomingState
from comfy_cluster.protocol.incoming_queue import IncomingQueue
from comfy_cluster.protocol.shared_memory_port import SharedMemoryPort
from comfy_cluster.protocol.timers import TimerKind, Timers
from comfy_cluster.wire import BufferAnnouncement, MessageType, TransferKey

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Seconds that an arrived buffer waits for somebody to claim it. Two instances of a job that makes a
# video may be hours apart, and the sender was told that all is well. The budget bounds the memory
# meanwhile, and `end_job` frees it: this is for what an aborted job leaves.
UNCLAIMED_TIMEOUT = 21_600.0
# Seconds that others are kept waiting for a relay: those behind an instance that has no memory yet,
# and who waits here for a payload that is still read. Relays lag by a round trip, so few do.
RELAY_GRACE = 0.25
LARGEST_UNCLAIMED = 4_096  # buffers of one peer that nobody asked for; the next ones are refused
LARGEST_EXPIRED = 16_384  # keys of expired buffers that are remembered; a few megabytes


class IncomingStore:
    def __init__(
        self,
        *,
        budget: IncomingBudget,
        engine: EnginePort,
        timers: Timers,
        allocate: Callable[[int], Buffer],
        shared_memory: SharedMemoryPort,
    ) -> None:
        self.queue = IncomingQueue(budget)
        self._budget = budget
        self._engine = engine
        self._timers = timers
        self._allocate = allocate
        self._shared_memory = shared_memory
        self._buffers: dict[int, IncomingBuffer] = {}
        self._by_key: dict[TransferKey, dict[int, IncomingBuffer]] = {}
        self._unclaimed_counts: Counter[int] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return len(self._buffers)

    def __contains__(self, buffer_id: int) -> bool:
        return buffer_id in self._buffers

    def get(self, buffer_id: int, *states: IncomingState) -> IncomingBuffer | None:
        """The buffer, if it is there and in one of `states` (any, if none is given)."""
        buffer = self._buffers.get(buffer_id)
        return buffer if buffer is not None and (not states or buffer.state in states) else None

    def in_states(self, *states: IncomingState) -> list[IncomingBuffer]:
        return [buffer for buffer in self._buffers.values() if buffer.state in states]

    def has_key(self, key: TransferKey) -> bool:
        return key in self._by_key

    def has_many_unclaimed(self, peer: int) -> bool:
        """Whether the peer has all the buffers here, waiting or arrived, that it may have without
        a claim. The smallest ones take next to nothing of the budget, which so bounds no number.
        """
        return self._unclaimed_counts[peer] >= LARGEST_UNCLAIMED

    def add(
        self,
        peer: int,
        message_type: MessageType,
        announcement: BufferAnnouncement,
        *,
        is_claimed: bool,
    ) -> IncomingBuffer:
        self._count += 1
        buffer = IncomingBuffer(peer, message_type, announcement, self._count, is_claimed)
        buffer.is_to_relay = announcement.route is not None and bool(announcement.route.relay_to)
        self._buffers[buffer.buffer_id] = buffer
        self._by_key.setdefault(buffer.key, {})[buffer.buffer_id] = buffer
        self._unclaimed_counts[peer] += not is_claimed
        return buffer

    def drop_larger_chunks(self, peer: int, announcement: BufferAnnouncement) -> bool:
        """Forget what the peer announces anew because its path carries no such chunks any more.

        True: that had its memory."""
        had_memory = False
        for buffer in list(self._by_key.get(announcement.key, {}).values()):
            is_unfinished = buffer.state in (IncomingState.QUEUED, IncomingState.RECEIVING)
            has_larger_chunks = buffer.announcement.chunk_size > announcement.chunk_size > 0
            if is_unfinished and has_larger_chunks and buffer.peer == peer:
                had_memory |= buffer.state is IncomingState.RECEIVING
                self.remove(buffer)
        return had_memory

    def take_budget(self, buffer: IncomingBuffer) -> None:
        """Take the share of the budget, before the memory."""
        is_inline = buffer.announcement.inline_payload is not None
        self._budget.take(
            buffer.size, is_claimed=buffer.is_claimed, is_returning=buffer.is_returning
        )
        buffer.state = IncomingState.ARRIVED if is_inline else IncomingState.RECEIVING

    def give_memory(self, buffer: IncomingBuffer) -> Buffer | None:
        """Take the share of the budget, and memory. None: there is no memory."""
        self.take_budget(buffer)
        try:
            buffer.memory = self._allocate(buffer.size)
        except MemoryError:
            return None
        return buffer.memory

    def set_claimed(self, key: TransferKey, is_claimed: bool, now: float) -> None:
        for buffer in list(self._by_key.get(key, {}).values()):
            if buffer.is_claimed == is_claimed:
                continue
            self._unclaimed_counts[buffer.peer] += -1 if is_claimed else 1
            if buffer.state is IncomingState.QUEUED:
                self.queue.set_claimed(buffer, is_claimed)
                continue
            self._budget.move(buffer.size, to_claimed=is_claimed)
            buffer.is_claimed = is_claimed
            self.set_unclaimed_timer(buffer, now)

    def set_unclaimed_timer(self, buffer: IncomingBuffer, now: float) -> None:
        if buffer.state is IncomingState.HELD and not buffer.is_claimed:
            self._timers.set(TimerKind.UNCLAIMED, buffer.buffer_id, now + UNCLAIMED_TIMEOUT)
        else:
            self._timers.cancel(TimerKind.UNCLAIMED, buffer.buffer_id)

    def set_relay_timer(self, buffer: IncomingBuffer, now: float) -> None:
        """For a buffer whose relay waits: for memory here, or for the next instance."""
        self._timers.set(TimerKind.RELAY, buffer.buffer_id, now + RELAY_GRACE)

    def close(self, buffer: IncomingBuffer) -> None:
        """Nothing more comes of the payload. Twice is fine."""
        if buffer.is_shared:
            self._shared_memory.close_incoming(buffer.buffer_id)
        else:
            self._engine.close_incoming(buffer.buffer_id)

    def remove(self, buffer: IncomingBuffer) -> None:
        """Forget a buffer in any state; the engine touches its memory no more after this."""
        self._timers.cancel(TimerKind.RELAY, buffer.buffer_id)
        del self._buffers[buffer.buffer_id]
        self._unclaimed_counts[buffer.peer] -= not buffer.is_claimed
        same_key = self._by_key[buffer.key]
        del same_key[buffer.buffer_id]
        if not same_key:
            del self._by_key[buffer.key]
        if buffer.state is IncomingState.QUEUED:
            self.queue.remove(buffer)
            return
        self.close(buffer)
        if buffer.state is IncomingState.RECEIVING:
            self.queue.on_closed(buffer.peer)
        self._timers.cancel(TimerKind.UNCLAIMED, buffer.buffer_id)
        self._budget.give_back(
            buffer.size, is_claimed=buffer.is_claimed, is_returning=buffer.is_returning
        )
        buffer.memory = None
