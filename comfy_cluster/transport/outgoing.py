"""Messages and buffers on their way out: which handle waits for which of them.

Lives on the control thread. What is sent how, the protocol core knows. Used by `transport.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.errors import ClusterError
from comfy_cluster.protocol import Endpoint
from comfy_cluster.transport.control import Command
from comfy_cluster.transport.digests import DigestPool
from comfy_cluster.transport.handle import Handle
from comfy_cluster.wire import MessageType, TransferKey


class OutgoingHandles:
    """A handle that has an outcome already, because it was cancelled, is sent nothing for."""

    def __init__(
        self, endpoint: Endpoint, digests: DigestPool, *, post: Callable[[Command], None]
    ) -> None:
        """`post` hands a command to the control thread, from any thread."""
        self._endpoint = endpoint
        self._digests = digests
        self._post = post
        self._messages: dict[int, Handle[None]] = {}
        self._buffers: dict[int, Handle[None]] = {}
        self._message_ids: dict[Handle[None], int] = {}
        self._buffer_ids: dict[Handle[None], int] = {}
        self._without_digest: dict[int, EncodedPayload] = {}

    # Messages

    def send_message(
        self,
        handle: Handle[None],
        peer: int,
        message_type: MessageType,
        payload: bytes,
        *,
        require_ack: bool,
        now: float,
    ) -> None:
        """Without `require_ack` the handle is done at once: nobody will ever know more."""
        if handle.done():
            return
        try:
            message_id = self._endpoint.send_message(
                peer, message_type, payload, require_ack=require_ack, now=now
            )
        except ClusterError as error:
            handle.set_exception(error)
            return
        if not require_ack:
            handle.set_result(None)
            return
        self._messages[message_id] = handle
        self._message_ids[handle] = message_id

    def cancel_message(self, handle: Handle[None], now: float) -> None:
        message_id = self._message_ids.pop(handle, None)
        if message_id is not None:
            del self._messages[message_id]
            self._endpoint.cancel_message(message_id, now)

    def on_message_outcome(self, message_id: int, error: ClusterError | None = None) -> None:
        handle = self._messages.pop(message_id, None)
        if handle is not None:
            del self._message_ids[handle]
            _finish(handle, error)

    # Buffers

    def send_buffer(
        self,
        handle: Handle[None],
        peer: int,
        key: TransferKey,
        payload: EncodedPayload,
        *,
        digest: bytes | None,
        message_type: MessageType,
        now: float,
    ) -> None:
        if handle.done():
            return
        try:
            buffer_id = self._endpoint.send_buffer(
                peer, key, payload, digest=digest, message_type=message_type, now=now
            )
        except ClusterError as error:
            handle.set_exception(error)
            return
        self._track(buffer_id, handle)
        if digest is None:
            self._without_digest[buffer_id] = payload

    def send_chain(
        self,
        handles: Mapping[int, Handle[None]],
        key: TransferKey,
        payload: EncodedPayload,
        *,
        digest: bytes,
        message_type: MessageType,
        now: float,
    ) -> None:
        """To the peers of `handles`, in their order."""
        peers = [peer for peer, handle in handles.items() if not handle.done()]
        try:
            transfers = self._endpoint.send_chain(
                peers, key, payload, digest=digest, message_type=message_type, now=now
            )
        except ClusterError as error:
            for handle in handles.values():
                handle.set_exception(error)
            return
        for peer, buffer_id in transfers.items():
            self._track(buffer_id, handles[peer])

    def _track(self, buffer_id: int, handle: Handle[None]) -> None:
        self._buffers[buffer_id] = handle
        self._buffer_ids[handle] = buffer_id

    def cancel_buffer(self, handle: Handle[None], now: float) -> None:
        buffer_id = self._buffer_ids.pop(handle, None)
        if buffer_id is not None:
            del self._buffers[buffer_id]
            self._without_digest.pop(buffer_id, None)
            self._endpoint.cancel_buffer(buffer_id, now)

    def on_digest_needed(self, buffer_id: int) -> None:
        """It cannot go through shared memory."""
        payload = self._without_digest.pop(buffer_id, None)
        if payload is not None:
            provide = partial(self._endpoint.provide_digest, buffer_id)
            self._digests.digest(payload, lambda digest: self._post(partial(provide, digest)))

    def on_buffer_outcome(self, buffer_id: int, error: ClusterError | None = None) -> None:
        handle = self._buffers.pop(buffer_id, None)
        self._without_digest.pop(buffer_id, None)
        if handle is not None:
            del self._buffer_ids[handle]
            _finish(handle, error)


def _finish(handle: Handle[None], error: ClusterError | None) -> None:
    if error is None:
        handle.set_result(None)
    else:
        handle.set_exception(error)
