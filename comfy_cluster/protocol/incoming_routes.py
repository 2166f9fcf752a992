"""Payloads that come over a route: which are here, and which were, whatever route brought them.

How it works: an origin that finds a new route announces the same payload again. Its routes are
numbered, and the newest counts: a half that an older one brought is dropped for it. A payload that
is here, or was, is reported as done at once, so that it is never handed out twice.
Used by `incoming_buffers.py`.
"""

from __future__ import annotations

from comfy_cluster.protocol.buffer_replies import BufferReplies
from comfy_cluster.protocol.incoming_buffer import IncomingBuffer, IncomingState
from comfy_cluster.protocol.recent import RecentSet
from comfy_cluster.wire import BufferAnnouncement, FailureCode


class IncomingRoutes:
    def __init__(self, replies: BufferReplies) -> None:
        self._replies = replies
        self._buffers: dict[int, IncomingBuffer] = {}
        self._had: RecentSet[int] = RecentSet()
        self._given_up: RecentSet[int] = RecentSet()

    def __len__(self) -> int:
        return len(self._buffers)

    def get(self, payload_id: int) -> IncomingBuffer | None:
        """The buffer in which the payload arrives; None: it does not, or is verified."""
        return self._buffers.get(payload_id)

    def had(self, payload_id: int) -> bool:
        return payload_id in self._had

    def add(self, buffer: IncomingBuffer) -> None:
        if buffer.announcement.route is not None:
            self._buffers[buffer.announcement.route.payload_id] = buffer

    def remove(self, buffer: IncomingBuffer) -> None:
        route = buffer.announcement.route
        if route is not None and self._buffers.get(route.payload_id) is buffer:
            del self._buffers[route.payload_id]

    def on_verified(self, buffer: IncomingBuffer, now: float) -> None:
        """Whoever has announced it is told; what was announced meanwhile need not come."""
        self._replies.done(buffer.peer, buffer.announcement, now)
        if buffer.successor is not None:
            self._replies.done(*buffer.successor, now)
            buffer.successor = None
        if buffer.announcement.route is not None:
            self._had.add(buffer.announcement.route.payload_id)
        self.remove(buffer)

    def on_given_up(self, payload_id: int) -> None:
        """The origin cancelled it before anything of it came."""
        self._given_up.add(payload_id)

    def is_answered(self, peer: int, announcement: BufferAnnouncement, now: float) -> bool:
        """Answer an announcement that needs no memory. False: it does."""
        route, buffer_id = announcement.route, announcement.buffer_id
        if route is None:
            return False
        current = self._buffers.get(route.payload_id)
        if route.payload_id in self._had:
            self._replies.done(peer, announcement, now)
        elif route.payload_id in self._given_up:
            self._replies.leave(peer, buffer_id, "its origin gave it up", now)
            return True
        elif current is None or _is_older(current, route.number):
            if current is None or current.state is not IncomingState.ARRIVED:
                return False
            current.successor = (peer, announcement)  # the digest decides whether it is needed
        else:
            self._replies.leave(peer, buffer_id, "it comes over a newer route", now)
            return True
        if route.relay_to:
            self._replies.report(announcement, FailureCode.NOT_RELAYED, now)
        return True


def _is_older(buffer: IncomingBuffer, number: int) -> bool:
    route = buffer.announcement.route
    return route is not None and route.number < number
