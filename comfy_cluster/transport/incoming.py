"""Buffers on their way in: who waits for which key, and what arrived before anybody asked.

Lives on the control thread. Memory budget, time limits and lost peers are the protocol core's; it
tells. Used by `transport.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from comfy_cluster.errors import LocalProtocolError
from comfy_cluster.protocol import Endpoint
from comfy_cluster.protocol.events import BufferArrived, IncomingFailed
from comfy_cluster.transport.control import Command
from comfy_cluster.transport.digests import DigestPool
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.wire import TransferKey


class IncomingHandles:
    """`post` hands a command to the control thread, from any thread."""

    def __init__(
        self, endpoint: Endpoint, digests: DigestPool, *, post: Callable[[Command], None]
    ) -> None:
        self._endpoint = endpoint
        self._digests = digests
        self._post = post
        self._waiting: dict[TransferKey, Handle[ReceivedBuffer]] = {}
        self._verifying: dict[int, BufferArrived] = {}
        self._arrived: dict[TransferKey, tuple[int, ReceivedBuffer]] = {}

    # From the caller

    def claim(self, key: TransferKey, handle: Handle[ReceivedBuffer], now: float) -> None:
        """Fulfils `handle` with the buffer of `key`, at once if it is here already."""
        if handle.done():
            return
        if key in self._waiting:
            handle.set_exception(LocalProtocolError(f"somebody waits for {key} already"))
            return
        self._waiting[key] = handle
        self._endpoint.claim(key, now)
        _, buffer = self._arrived.pop(key, (0, None))
        if buffer is not None:
            self._deliver(key, buffer)

    def unclaim(self, key: TransferKey, handle: Handle[ReceivedBuffer], now: float) -> None:
        """The handle was cancelled."""
        if self._waiting.get(key) is handle:
            del self._waiting[key]
            self._endpoint.unclaim(key, now)

    def end_job(self, job_id: str) -> None:
        """Forgets what arrived for a job; the core has ended the rest."""
        for key in [key for key in self._arrived if key.job_id == job_id]:
            del self._arrived[key]

    # From the protocol core

    def on_arrived(self, event: BufferArrived) -> None:
        self._verifying[event.buffer_id] = event
        data = memoryview(event.memory).cast("B")[: event.size]
        self._digests.verify(
            data,
            event.digest,
            lambda is_equal: self._post(partial(self._on_verified, event, data, is_equal)),
        )

    def _on_verified(
        self, event: BufferArrived, data: memoryview, is_equal: bool, now: float
    ) -> None:
        buffer_id, key = event.buffer_id, event.key
        if self._verifying.pop(buffer_id, None) is None:
            return  # it was given up meanwhile
        if not is_equal:
            self._endpoint.reject_buffer(buffer_id, "the digest does not match", now)
            return
        if not self._endpoint.confirm_buffer(buffer_id, now):
            return
        release = partial(self._post, partial(self._endpoint.release_buffer, buffer_id))
        buffer = ReceivedBuffer(data, release)
        if key in self._waiting:
            self._deliver(key, buffer)
        elif key in self._arrived:
            buffer.release()  # a second one under one key: the first stays
        else:
            self._arrived[key] = (buffer_id, buffer)

    def _deliver(self, key: TransferKey, buffer: ReceivedBuffer) -> None:
        if not self._waiting.pop(key).set_result(buffer):
            buffer.release()

    def on_failed(self, event: IncomingFailed) -> None:
        if event.buffer_id is not None:
            self._verifying.pop(event.buffer_id, None)
            arrived_id, _ = self._arrived.get(event.key, (None, None))
            if arrived_id == event.buffer_id:
                del self._arrived[event.key]
        handle = self._waiting.pop(event.key, None)
        if handle is not None:
            handle.set_exception(event.error)
