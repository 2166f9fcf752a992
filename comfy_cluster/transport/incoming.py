"""Buffers on their way in: who waits for which key, and what arrived before anybody asked.

Lives on the control thread. Memory budget, time limits and lost peers are the protocol core's; it
tells. Used by `transport.py`.

How it works: a payload that this instance still relays to the next one is not handed out, because
its user may change it in place. A relay lags by a round trip, so that wait is short; where the next
instance is slow, the user gets a copy instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from comfy_cluster.errors import LocalProtocolError
from comfy_cluster.protocol import Endpoint
from comfy_cluster.protocol.events import BufferArrived, IncomingFailed
from comfy_cluster.transport.control import Command
from comfy_cluster.transport.digests import DigestPool
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.wire import TransferKey


@dataclass(slots=True, eq=False)
class _Arrived:
    """A verified payload that nobody has yet."""

    buffer_id: int
    key: TransferKey
    buffer: ReceivedBuffer
    is_relayed: bool
    """Its memory is still read."""
    is_late: bool = False
    """And will be for long."""
    is_copying: bool = False


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
        self._arrived: dict[TransferKey, _Arrived] = {}
        self._relayed: dict[int, _Arrived] = {}

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
        self._deliver(key)

    def unclaim(self, key: TransferKey, handle: Handle[ReceivedBuffer], now: float) -> None:
        """The handle was cancelled."""
        if self._waiting.get(key) is handle:
            del self._waiting[key]
            self._endpoint.unclaim(key, now)

    def end_job(self, job_id: str) -> None:
        """Forgets what arrived for a job; the core has ended the rest."""
        for key in [key for key in self._arrived if key.job_id == job_id]:
            self._forget(self._arrived[key])

    # From the protocol core

    def on_arrived(self, event: BufferArrived) -> None:
        self._verifying[event.buffer_id] = event
        data = memoryview(event.memory).cast("B")[: event.size]
        if not event.digest:  # memory of this machine: there is nothing to verify
            self._on_verified(event, data, True, time.monotonic())
            return
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
        if key in self._arrived:
            buffer.release()  # a second one under one key: the first stays
            return
        is_relayed = self._endpoint.is_relaying(buffer_id)
        self._arrived[key] = arrived = _Arrived(buffer_id, key, buffer, is_relayed)
        if is_relayed:
            self._relayed[buffer_id] = arrived
        self._deliver(key)

    def on_relay_ended(self, buffer_id: int) -> None:
        arrived = self._relayed.pop(buffer_id, None)
        if arrived is not None:
            arrived.is_relayed = False
            self._deliver(arrived.key)

    def on_relay_late(self, buffer_id: int) -> None:
        arrived = self._relayed.get(buffer_id)
        if arrived is not None:
            arrived.is_late = True
            self._deliver(arrived.key)

    def _deliver(self, key: TransferKey) -> None:
        """Hand a payload to who waits for it, once nobody else reads it."""
        arrived = self._arrived.get(key)
        if arrived is None or key not in self._waiting or arrived.is_copying:
            return
        if not arrived.is_relayed:
            self._forget(arrived)
            if not self._waiting.pop(key).set_result(arrived.buffer):
                arrived.buffer.release()
        elif arrived.is_late:
            arrived.is_copying = True
            self._digests.copy(
                arrived.buffer.data,
                lambda copied: self._post(partial(self._on_copied, arrived, copied)),
            )

    def _on_copied(self, arrived: _Arrived, copied: memoryview | None, now: float) -> None:
        """`copied` is None where there is no memory for it: then the relay is waited for."""
        arrived.is_copying = arrived.is_late = False
        if self._arrived.get(arrived.key) is not arrived:
            return  # given up meanwhile
        if copied is not None:
            self._relayed.pop(arrived.buffer_id, None)
            unclaim = partial(self._post, partial(self._endpoint.unclaim, arrived.key))
            original, arrived.buffer = arrived.buffer, ReceivedBuffer(copied, unclaim)
            arrived.is_relayed = False
            original.release()  # a copy takes nothing of the budget, as tensors handed out do not
        self._deliver(arrived.key)

    def _forget(self, arrived: _Arrived) -> None:
        del self._arrived[arrived.key]
        self._relayed.pop(arrived.buffer_id, None)

    def on_failed(self, event: IncomingFailed) -> None:
        if event.buffer_id is not None:
            self._verifying.pop(event.buffer_id, None)
            arrived = self._arrived.get(event.key)
            if arrived is not None and arrived.buffer_id == event.buffer_id:
                self._forget(arrived)
        handle = self._waiting.pop(event.key, None)
        if handle is not None:
            handle.set_exception(event.error)
