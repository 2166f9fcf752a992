"""What a receiver tells the sender of a buffer. Dropped when the sender is not connected."""

from __future__ import annotations

import logging

from comfy_cluster.protocol.courier import Courier
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.wire import (
    BufferAccept,
    BufferCancel,
    BufferDone,
    BufferFailed,
    FailureCode,
    MessageType,
)

logger = logging.getLogger("comfy_cluster.protocol")


class BufferReplies:
    def __init__(self, courier: Courier, stats: ProtocolStats) -> None:
        self._courier = courier
        self._stats = stats

    def accept(self, peer: int, buffer_id: int, now: float) -> None:
        packed = BufferAccept(buffer_id).pack()
        self._courier.post_control(peer, MessageType.BUFFER_ACCEPT, packed, now)

    def done(self, peer: int, buffer_id: int, now: float) -> None:
        packed = BufferDone(buffer_id).pack()
        self._courier.post_control(peer, MessageType.BUFFER_DONE, packed, now)

    def corrupt(self, peer: int, buffer_id: int, reason: str, now: float) -> None:
        self._stats.buffers_rejected += 1
        self._failed(peer, BufferFailed(buffer_id, FailureCode.CORRUPT, reason), now)

    def refuse(self, peer: int, buffer_id: int, code: FailureCode, text: str, now: float) -> None:
        self._stats.buffers_refused += 1
        logger.warning("! %d buffer %016x refused: %s", peer, buffer_id, text)
        self._failed(peer, BufferFailed(buffer_id, code, text), now)

    def cancel(self, peer: int, buffer_id: int, reason: str, now: float) -> None:
        packed = BufferCancel(buffer_id, reason).pack()
        self._courier.post_control(peer, MessageType.BUFFER_CANCEL, packed, now)

    def _failed(self, peer: int, failed: BufferFailed, now: float) -> None:
        self._courier.post_control(peer, MessageType.BUFFER_FAILED, failed.pack(), now)
