"""Tensors out to peers and in from peers: encoding and decoding around one transfer each.

Used by the collectives. Knows no collective: it is told the key, the peers and the message type.

How it works: nothing is encoded before its turn in a byte budget, so that ten queued batches do not
hold ten encoded copies. What costs no memory (the raw form of a contiguous tensor *is* the tensor)
waits for nobody. Codec work runs on the codec pool, one piece after the other starts when a handle
completes, and no thread ever waits for another one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch

from comfy_cluster import codec, identity
from comfy_cluster.cluster.budget import Admission, ByteBudget
from comfy_cluster.cluster.ports import Transport
from comfy_cluster.cluster.routes import Routes
from comfy_cluster.codec import EncodedPayload
from comfy_cluster.config import ClusterConfig, Codec
from comfy_cluster.errors import CorruptPayload
from comfy_cluster.transport.handle import Executor, Handle, all_ended
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.wire import MessageType, TransferKey


def _to_each(peers: Collection[int], size: int) -> Routes:
    return Routes(tuple(sorted(peers)))


class Payloads:
    """Sends tensors and receives tensors. Thread-safe; no method blocks."""

    def __init__(
        self,
        config: ClusterConfig,
        transport: Transport,
        *,
        executor: Executor,
        budget: ByteBudget,
        plan: Callable[[Collection[int], int], Routes] = _to_each,
    ) -> None:
        """`plan(peers, size)` says which way a payload goes."""
        self._config = config
        self._transport = transport
        self._executor = executor
        self._budget = budget
        self._plan = plan
        # A few bytes may decode to a tensor many times larger: it must at least fit the machine.
        self._decoded_size_limit = identity.total_memory()

    def send(
        self,
        tensor: torch.Tensor,
        peers: Collection[int],
        *,
        key: TransferKey,
        message_type: MessageType,
        is_image: bool,
        on_transfer: Callable[[int, Handle[None]], Handle[None]],
    ) -> Handle[None]:
        """Encodes once and sends to all `peers` at the same time; done when each has it.

        A peer that fails ends no transfer to another one; its error is told when all have ended.

        `tensor` must not be changed in place before that. `on_transfer(peer, handle)` is called for
        each transfer when it begins, on a codec thread, and returns the handle to wait for.
        """
        if not peers:
            return Handle.completed(None)
        codec_name = self._codec_for(peers)

        def send_encoded(payload: EncodedPayload) -> Handle[None]:
            transfers = self._transfers(payload, peers, key=key, message_type=message_type)
            return all_ended([on_transfer(peer, transfers[peer]) for peer in sorted(transfers)])

        def begin(admission: Admission) -> Handle[None]:
            def encode(tensor: torch.Tensor) -> EncodedPayload:
                return self._encode(tensor, admission, codec_name, is_image=is_image)

            encoded = Handle.completed(tensor).then(encode, self._executor)
            sent = encoded.and_then(send_encoded)
            sent.add_done_callback(lambda _: admission.release())
            return sent

        cost = encoding_cost(tensor, codec_name=codec_name)
        admitted = self._budget.admit(cost)
        return admitted.and_then(begin, on_dropped=Admission.release)

    def _codec_for(self, peers: Collection[int]) -> str:
        """What shared memory carries is not made smaller first: that takes longer than copying."""
        are_here = all(self._transport.shares_memory(peer) for peer in peers)
        return str(
            Codec.RAW if are_here and self._config.codec is Codec.AUTO else self._config.codec
        )

    def _transfers(
        self,
        payload: EncodedPayload,
        peers: Collection[int],
        *,
        key: TransferKey,
        message_type: MessageType,
    ) -> dict[int, Handle[None]]:
        """Begins to send; the handles by peer."""
        transport, routes = self._transport, self._plan(peers, payload.size)
        transfers = {
            peer: transport.send_buffer(peer, key, payload, message_type=message_type)
            for peer in routes.direct
        }
        if routes.chain:
            transfers |= transport.send_chain(routes.chain, key, payload, message_type=message_type)
        return transfers

    def allocate(self, size: int) -> memoryview:
        """Memory for what payloads are joined into. Raises MemoryError."""
        return self._transport.allocate(size)

    def claim(self, key: TransferKey, *, peer: int) -> Handle[ReceivedBuffer]:
        """The payload that `peer` sends under `key`."""
        return self._transport.receive_buffer(key, peer=peer)

    def decode(self, arriving: Handle[ReceivedBuffer], *, peer: int) -> Handle[torch.Tensor]:
        """The tensor in a payload from `peer`, once that has arrived."""

        def decode_received(received: ReceivedBuffer) -> torch.Tensor:
            try:
                return codec.decode(received.data, size_limit=self._decoded_size_limit)
            except CorruptPayload as error:
                raise CorruptPayload(f"from instance {peer}: {error}") from error
            finally:
                received.release()

        return arriving.then(decode_received, self._executor, on_dropped=ReceivedBuffer.release)

    def _encode(
        self, tensor: torch.Tensor, admission: Admission, codec_name: str, *, is_image: bool
    ) -> EncodedPayload:
        payload = codec.encode(
            tensor,
            codec=codec_name,
            precision=str(self._config.image_precision),
            is_image=is_image,
        )
        admission.shrink_to(0 if _shares_memory(payload, tensor) else payload.size)
        return payload


def encoding_cost(tensor: torch.Tensor, *, codec_name: str) -> int:
    """Bytes that encoding may take beside the tensor itself: an estimate, made before it begins."""
    is_plain = tensor.device.type == "cpu" and tensor.is_contiguous()
    copied = 0 if is_plain else tensor.nbytes
    may_be_image = tensor.dtype == torch.uint8 or tensor.is_floating_point()
    if codec_name == "raw" or not may_be_image or tensor.ndim not in (2, 3, 4):
        return copied
    return copied + tensor.numel()  # a byte for each value; PNG makes noise hardly larger


def _shares_memory(payload: EncodedPayload, tensor: torch.Tensor) -> bool:
    if payload.codec != "raw" or tensor.device.type != "cpu":
        return False
    return int(np.frombuffer(payload.body, np.uint8).ctypes.data) == tensor.data_ptr()
