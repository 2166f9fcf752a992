"""Tensors out to peers and in from peers: codec, budget and transport around one tensor each.

Used by the collectives. Knows no collective: it is told the key, the peers and the message type.

How it works: nothing is encoded before its turn in a byte budget, so that ten queued batches do not
hold ten encoded copies. What costs no memory (the raw form of a contiguous tensor *is* the tensor)
waits for nobody. Codec work runs on the codec pool, one piece after the other starts when a handle
completes, and no thread ever waits for another one. A tensor that is encoded goes in parts
(`sending.py`), and is put together part by part; the first part says how many there are.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from comfy_cluster import codec, identity
from comfy_cluster.cluster.budget import ByteBudget
from comfy_cluster.cluster.choice import RAW, Choice, CodecChooser
from comfy_cluster.cluster.forecast import Stage, Work
from comfy_cluster.cluster.links import Link
from comfy_cluster.cluster.ports import Transport
from comfy_cluster.cluster.routes import Routes
from comfy_cluster.cluster.sending import Sending, Transfers, encoding_cost
from comfy_cluster.codec import Assembly, EncodedPayload, Part
from comfy_cluster.codec.device import when_written
from comfy_cluster.config import ClusterConfig
from comfy_cluster.errors import CorruptPayload, UnsupportedTensor
from comfy_cluster.transport.handle import Executor, Handle, all_of
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.wire import MessageType, TransferKey

if TYPE_CHECKING:
    from typing_extensions import Buffer

OnTransfer = Callable[[int, Handle[None]], Handle[None]]
OnArriving = Callable[[Handle[ReceivedBuffer]], object]


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A tensor that is to be sent."""

    tensor: torch.Tensor
    key: TransferKey
    message_type: MessageType
    is_image: bool
    on_transfer: OnTransfer
    written: torch.cuda.Event | None


class Payloads:
    """Sends tensors and receives tensors. Thread-safe; no method blocks."""

    def __init__(
        self,
        config: ClusterConfig,
        transport: Transport,
        *,
        executor: Executor,
        budget: ByteBudget,
        chooser: CodecChooser,
        link_to: Callable[[Collection[int], int], Link],
        plan: Callable[[Collection[int], int], Routes],
    ) -> None:
        """`plan(peers, size)` says which way a payload goes, `link_to` what is known of it."""
        self._transport = transport
        self._executor = executor
        self._budget = budget
        self._chooser = chooser
        self._speeds = chooser.speeds
        self._link_to = link_to
        self._plan = plan
        self._precision = str(config.image_precision)
        # A few bytes may decode to a tensor many times larger: it must at least fit the machine.
        self._decoded_size_limit = identity.total_memory()

    # Out

    def send(
        self,
        tensor: torch.Tensor,
        peers: Collection[int],
        *,
        key: TransferKey,
        message_type: MessageType,
        is_image: bool,
        on_transfer: OnTransfer,
        siblings: int = 1,
    ) -> Handle[None]:
        """Encodes once and sends to all `peers` at the same time; done when each has it.

        A peer that fails ends no transfer to another one; its error is told when all have ended.

        `tensor` must not be changed in place before that. `on_transfer(peer, handle)` is called for
        each transfer (a tensor in parts has several to each peer) when it begins, and returns the
        handle to wait for. `siblings`: how many such calls, this one too, are made at once, and
        will share the link.
        """
        if not peers:
            return Handle.completed(None)
        try:
            codec.check_supported(tensor)
        except UnsupportedTensor as error:
            return Handle.failed(error)
        outgoing = _Outgoing(tensor, key, message_type, is_image, on_transfer, when_written(tensor))
        link = self._link_to(peers, tensor.nbytes).shared_by(siblings)

        def begin(choice: Choice) -> Handle[None]:
            return self._send_as(choice, outgoing, peers, link)

        quick = self._chooser.quick_choice(tensor, link)
        if quick is not None:
            return begin(quick)

        def choose(outgoing: _Outgoing) -> Choice:
            if outgoing.written is not None:
                outgoing.written.synchronize()  # without the GIL
            return self._chooser.choose(outgoing.tensor, link, is_image=outgoing.is_image)

        return Handle.completed(outgoing).then(choose, self._executor).and_then(begin)

    def _send_as(
        self, choice: Choice, outgoing: _Outgoing, peers: Collection[int], link: Link
    ) -> Handle[None]:
        """Whole where the tensor's own memory is sent, without a copy; else in parts."""
        self._chooser.count(choice, outgoing.tensor)
        tensor = outgoing.tensor
        is_own_memory = choice.codec == RAW and not (
            self._chooser.rounds(tensor, is_image=outgoing.is_image)
            or tensor.device.type != "cpu"
            or not tensor.is_contiguous()
        )
        is_cut = link.takes_parts and choice.is_cut and not is_own_memory
        sending = Sending(
            codec.parts_of(tensor) if is_cut else [Part(0, tensor, None)],
            peers,
            cost_of=lambda part: 0 if is_own_memory else encoding_cost(part.values),
            encode=partial(self._encode, outgoing=outgoing, codec_name=choice.codec),
            transfer=partial(self._transfer, outgoing),
            executor=self._executor,
            budget=self._budget,
        )
        return sending.start()

    def _encode(self, part: Part, *, outgoing: _Outgoing, codec_name: str) -> EncodedPayload:
        begun_at = time.thread_time()  # waiting for a core says nothing of the codec
        payload = codec.encode(
            part.values,
            codec=codec_name,
            precision=self._precision,
            is_image=outgoing.is_image,
            place=part.place,
            written=outgoing.written,
        )
        if part.values.device.type == "cpu":  # else most of the time was the copy's
            stage = Stage(payload.codec, Work.ENCODE, payload.holds_levels)
            self._speeds.learn(stage, part.values, seconds=time.thread_time() - begun_at)
        return payload

    def _transfer(
        self, outgoing: _Outgoing, part: Part, payload: EncodedPayload, peers: Collection[int]
    ) -> Transfers:
        """Begins to send a part; the handles by peer."""
        transport, routes = self._transport, self._plan(peers, payload.size)
        key = dataclasses.replace(outgoing.key, part=part.index)
        kind = outgoing.message_type
        transfers = {
            peer: transport.send_buffer(peer, key, payload, message_type=kind)
            for peer in routes.direct
        }
        if routes.chain:
            transfers |= transport.send_chain(routes.chain, key, payload, message_type=kind)
        return {peer: outgoing.on_transfer(peer, transfers[peer]) for peer in sorted(transfers)}

    def allocate(self, size: int) -> memoryview:
        """Memory for what payloads are joined into. Raises MemoryError."""
        return self._transport.allocate(size)

    # In

    def receive(
        self, key: TransferKey, *, peer: int, on_arriving: OnArriving
    ) -> Handle[torch.Tensor]:
        """The tensor that `peer` sends under `key`.

        `on_arriving(handle)` is called for each payload that it comes in, before that is asked for.
        """

        def claim(part: int) -> Handle[ReceivedBuffer]:
            part_key = dataclasses.replace(key, part=part)
            return self._transport.receive_buffer(part_key, peer=peer, before_claim=on_arriving)

        def begin(received: ReceivedBuffer) -> Handle[torch.Tensor]:
            try:
                contents = _from_peer(peer, codec.contents_of, received.data)
                if contents.place is None:
                    tensor = _from_peer(peer, self._decode, received.data, contents)
                    return Handle.completed(tensor)
                return self._assemble(received, contents, claim, peer=peer)
            finally:
                received.release()

        return claim(0).and_then(begin, self._executor, on_dropped=ReceivedBuffer.release)

    def _assemble(
        self,
        first: ReceivedBuffer,
        contents: codec.Contents,
        claim: Callable[[int], Handle[ReceivedBuffer]],
        *,
        peer: int,
    ) -> Handle[torch.Tensor]:
        """The whole of which `first` is the first part."""
        assert contents.place is not None
        assembly = _from_peer(peer, self._make_assembly, first.data)

        def add(index: int, received: ReceivedBuffer) -> None:
            try:
                _from_peer(peer, self._add, assembly, index, received.data)
            finally:
                received.release()

        others = [
            claim(index).then(
                partial(add, index), self._executor, on_dropped=ReceivedBuffer.release
            )
            for index in range(1, contents.place.count)
        ]
        added = all_of(others)
        try:
            _from_peer(peer, self._add, assembly, 0, first.data)
        except BaseException as error:
            added.abandon(error)
        return added.then(lambda _: _from_peer(peer, assembly.finish))

    def _make_assembly(self, first: Buffer) -> Assembly:
        limit = self._decoded_size_limit
        return Assembly(first, size_limit=limit, allocate=self._transport.allocate)

    def _decode(self, data: Buffer, contents: codec.Contents) -> torch.Tensor:
        begun_at = time.thread_time()
        tensor = codec.decode(
            data, size_limit=self._decoded_size_limit, allocate=self._transport.allocate
        )
        stage = Stage(contents.codec, Work.DECODE, contents.holds_levels)
        self._speeds.learn(stage, tensor, seconds=time.thread_time() - begun_at)
        return tensor

    def _add(self, assembly: Assembly, index: int, data: Buffer) -> None:
        contents = codec.contents_of(data)
        begun_at = time.thread_time()
        values = assembly.add(index, data)
        stage = Stage(contents.codec, Work.DECODE, contents.holds_levels)
        self._speeds.learn(stage, values, seconds=time.thread_time() - begun_at)


def _from_peer(peer: int, fn: Callable[..., Any], *arguments: Any) -> Any:
    """Calls it; what is corrupt then says from whom it came."""
    try:
        return fn(*arguments)
    except CorruptPayload as error:
        raise CorruptPayload(f"from instance {peer}: {error}") from error
