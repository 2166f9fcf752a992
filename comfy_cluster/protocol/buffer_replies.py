"""What a receiver tells of a buffer: who sends it, and where it came over a route, the origin too.

Dropped when that instance is not connected.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from comfy_cluster.protocol.courier import Courier
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.wire import (
    BufferAccept,
    BufferAnnouncement,
    BufferCancel,
    BufferDone,
    BufferFailed,
    FailureCode,
    MessageType,
)

logger = logging.getLogger("comfy_cluster.protocol")


class BufferReplies:
    """`peer` is who announced the buffer."""

    def __init__(self, courier: Courier, stats: ProtocolStats) -> None:
        self._courier = courier
        self._stats = stats

    def accept(self, peer: int, buffer_id: int, now: float) -> None:
        packed = BufferAccept(buffer_id).pack()
        self._courier.post_control(peer, MessageType.BUFFER_ACCEPT, packed, now)

    def done(self, peer: int, announcement: BufferAnnouncement, now: float) -> None:
        for each, name in _concerned(peer, announcement):
            self._courier.post_control(each, MessageType.BUFFER_DONE, BufferDone(name).pack(), now)

    def corrupt(self, peer: int, announcement: BufferAnnouncement, reason: str, now: float) -> None:
        self._stats.buffers_rejected += 1
        self._failed(peer, announcement, FailureCode.CORRUPT, reason, now)

    def refuse(
        self, peer: int, announcement: BufferAnnouncement, code: FailureCode, text: str, now: float
    ) -> None:
        self._stats.buffers_refused += 1
        logger.warning("! %d buffer %016x refused: %s", peer, announcement.buffer_id, text)
        self._failed(peer, announcement, code, text, now)

    def cancel(self, peer: int, announcement: BufferAnnouncement, reason: str, now: float) -> None:
        for each, name in _concerned(peer, announcement):
            packed = BufferCancel(name, reason).pack()
            self._courier.post_control(each, MessageType.BUFFER_CANCEL, packed, now)

    def not_shared(
        self, peer: int, announcement: BufferAnnouncement, reason: str, now: float
    ) -> None:
        logger.info("! %d buffer %016x goes over UDP: %s", peer, announcement.buffer_id, reason)
        self._failed(peer, announcement, FailureCode.NO_SHARED_MEMORY, reason, now)

    def leave(self, peer: int, buffer_id: int, reason: str, now: float) -> None:
        """Tell nobody but who sends it: the origin knows, or has the payload come another way."""
        packed = BufferCancel(buffer_id, reason).pack()
        self._courier.post_control(peer, MessageType.BUFFER_CANCEL, packed, now)

    def report(self, announcement: BufferAnnouncement, code: FailureCode, now: float) -> None:
        """Tell the origin alone what became of the route here."""
        route = announcement.route
        assert route is not None
        failed = BufferFailed(route.payload_id, code, route=route.number).pack()
        origin = announcement.key.source
        self._courier.post_control(origin, MessageType.BUFFER_FAILED, failed, now)

    def _failed(
        self, peer: int, announcement: BufferAnnouncement, code: FailureCode, text: str, now: float
    ) -> None:
        number = announcement.route.number if announcement.route is not None else 0
        for each, name in _concerned(peer, announcement):
            failed = BufferFailed(name, code, text, route=number)
            self._courier.post_control(each, MessageType.BUFFER_FAILED, failed.pack(), now)


def _concerned(peer: int, announcement: BufferAnnouncement) -> Iterator[tuple[int, int]]:
    """Who must know what became of a buffer, and what they call it."""
    yield peer, announcement.buffer_id
    route, origin = announcement.route, announcement.key.source
    if route is not None and origin != peer:
        yield origin, route.payload_id
