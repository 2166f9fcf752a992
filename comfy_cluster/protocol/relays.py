"""Incoming buffers that are sent on while they arrive: what an instance inside of a route does.

How it works: once a buffer has its memory here, it is announced to the next instance of its route,
and goes there as its bytes come in. It is announced no sooner: whoever has memory for it must not
wait for one that has none, or a ring of instances that are short of memory waits for ever. A relay
that the next instance does not end itself is reported to the origin, which finds another route.
`incoming_buffers.py` decides when a relay has been waited for long enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comfy_cluster.errors import ClusterError, PeerLost, TransferTimeout
from comfy_cluster.protocol.buffer_replies import BufferReplies
from comfy_cluster.protocol.engine_port import EnginePort
from comfy_cluster.protocol.incoming_buffer import IncomingBuffer, IncomingState
from comfy_cluster.protocol.outgoing_buffers import OutgoingBuffers
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.wire import FailureCode


@dataclass(frozen=True, slots=True, eq=False)
class _Relayed:
    """The bytes of an incoming buffer on their way to the next instance."""

    source: IncomingBuffer

    @property
    def size(self) -> int:
        return self.source.size

    @property
    def digest(self) -> bytes:
        return self.source.announcement.digest

    @property
    def budget_size(self) -> int:
        """Its memory counts as incoming."""
        return 0

    def inline_payload(self, largest: int) -> bytes | None:
        return None

    def open(self, engine: EnginePort, peer: int, buffer_id: int, chunk_size: int) -> None:
        if self.source.state is IncomingState.RECEIVING:
            engine.open_relay(peer, buffer_id, self.source.buffer_id, chunk_size=chunk_size)
        else:  # all of it is here, and the engine may know it no more
            assert self.source.memory is not None
            body = memoryview(self.source.memory).cast("B")[: self.source.size]
            engine.open_outgoing(peer, buffer_id, b"", body, chunk_size=chunk_size)


class Relays:
    """`on_over(buffer, now)`: the memory of a buffer is no longer read; not after `end`."""

    def __init__(
        self,
        *,
        outgoing: OutgoingBuffers,
        replies: BufferReplies,
        stats: ProtocolStats,
        is_connected: Callable[[int], bool],
    ) -> None:
        self._outgoing = outgoing
        self._replies = replies
        self._stats = stats
        self._is_connected = is_connected
        self._transfers: dict[int, int] = {}  # by the buffer's id
        self._buffers: dict[int, IncomingBuffer] = {}  # by the transfer's id
        self.on_over: Callable[[IncomingBuffer, float], None] = _nobody_listens

    def __len__(self) -> int:
        return len(self._transfers) + len(self._buffers)

    def is_under_way(self, buffer_id: int) -> bool:
        return buffer_id in self._transfers

    def is_accepted(self, buffer_id: int) -> bool:
        """Whether the next instance has memory: then the relay ends without anybody's help."""
        return self._outgoing.is_accepted(self._transfers[buffer_id])

    def begin(self, buffer: IncomingBuffer, now: float) -> None:
        """The buffer has memory: announce it to the next of its route, if there is one."""
        route = buffer.announcement.route
        if route is None or not buffer.is_to_relay:
            return
        successor = route.relay_to[0]
        if not self._is_connected(successor):
            self.refuse(buffer, now)
            return
        transfer_id = self._outgoing.send(
            successor,
            buffer.key,
            _Relayed(buffer),
            message_type=buffer.message_type,
            listener=self,
            now=now,
            route=route.onward(),
            attempt=buffer.announcement.attempt,
        )
        self._transfers[buffer.buffer_id] = transfer_id
        self._buffers[transfer_id] = buffer

    def refuse(self, buffer: IncomingBuffer, now: float) -> None:
        """It is not sent on from here; the origin sees to those behind."""
        buffer.is_to_relay = False
        self._replies.report(buffer.announcement, FailureCode.NOT_RELAYED, now)

    def end(self, buffer: IncomingBuffer, now: float) -> None:
        """Stop sending it on, because it ends here or the next instance lets it wait."""
        transfer_id = self._transfers.pop(buffer.buffer_id, None)
        if transfer_id is not None:
            del self._buffers[transfer_id]
            self._outgoing.cancel(transfer_id, "it is not relayed any more", now)
            self.refuse(buffer, now)

    # What the transfer to the next instance reports

    def on_transfer_done(self, transfer_id: int, now: float) -> None:
        self._stats.buffers_relayed += 1
        self._on_ended(transfer_id, now)

    def on_transfer_failed(self, transfer_id: int, error: ClusterError, now: float) -> None:
        buffer = self._buffers.get(transfer_id)
        if buffer is None:
            return  # ended here
        if isinstance(error, PeerLost | TransferTimeout):  # else it tells the origin itself
            self.refuse(buffer, now)
        self._on_ended(transfer_id, now)

    def _on_ended(self, transfer_id: int, now: float) -> None:
        buffer = self._buffers.pop(transfer_id)
        del self._transfers[buffer.buffer_id]
        self.on_over(buffer, now)


def _nobody_listens(buffer: IncomingBuffer, now: float) -> None:
    pass
