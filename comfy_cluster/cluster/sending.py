"""One tensor on its way out, part by part, to all its receivers. Used by `Payloads` alone.

How it works. Each part waits for its turn in the byte budget, is encoded on the codec pool, and is
handed to the transport at once: so the first one leaves before the last one is encoded. A receiver
that a part does not reach gets no further ones; when that is true of all, nothing more is encoded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from comfy_cluster.cluster.budget import Admission, ByteBudget
from comfy_cluster.codec import EncodedPayload, Part
from comfy_cluster.transport.handle import Executor, Handle, all_ended

Transfers = Mapping[int, Handle[None]]


class Sending:
    """Thread-safe; `start` is called once."""

    def __init__(
        self,
        parts: Sequence[Part],
        peers: Collection[int],
        *,
        cost_of: Callable[[Part], int],
        encode: Callable[[Part], EncodedPayload],
        transfer: Callable[[Part, EncodedPayload, Collection[int]], Transfers],
        executor: Executor,
        budget: ByteBudget,
    ) -> None:
        """`cost_of`: bytes that encoding may take beside the tensor, an estimate made beforehand.

        `transfer` begins to send a part to the peers given; handles by peer.
        """
        self._parts = parts
        self._peers = sorted(peers)
        self._cost_of = cost_of
        self._encode = encode
        self._transfer = transfer
        self._executor = executor
        self._budget = budget
        self._lock = threading.Lock()  # guards the fields below
        self._errors: dict[int, BaseException] = {}
        self._failure: BaseException | None = None
        self._sent: list[Handle[None]] = []

    def start(self) -> Handle[None]:
        """Done when each peer has all parts; a peer's error is told when all have ended.

        A part that cannot be encoded ends all at once: without it the others are of no use.
        """
        for part in self._parts:
            sent = self._send(part)
            with self._lock:
                self._sent.append(sent)
                failure = self._failure
            if failure is not None:
                sent.abandon(failure)
        return all_ended(self._sent)

    def _on_encoded(self, encoded: Handle[EncodedPayload | None]) -> None:
        error = encoded.exception()
        if error is None:
            return
        with self._lock:
            if self._failure is not None:  # giving up the others fails their encodings too
                return
            self._failure = error
            sent = list(self._sent)
        for each in sent:
            each.abandon(error)

    def _send(self, part: Part) -> Handle[None]:
        def begin(admission: Admission) -> Handle[None]:
            def encode(values: Part) -> EncodedPayload | None:
                return self._encode_wanted(values, admission)

            encoded = Handle.completed(part).then(encode, self._executor)
            encoded.add_done_callback(self._on_encoded)
            sent = encoded.and_then(lambda payload: self._send_encoded(part, payload))
            sent.add_done_callback(lambda _: admission.release())
            return sent

        admitted = self._budget.admit(self._cost_of(part))
        return admitted.and_then(begin, on_dropped=Admission.release)

    def _encode_wanted(self, part: Part, admission: Admission) -> EncodedPayload | None:
        """None: nobody is left to have it."""
        if len(self._errors) == len(self._peers):
            return None
        payload = self._encode(part)
        admission.shrink_to(0 if _shares_memory(payload, part.values) else payload.size)
        return payload

    def _send_encoded(self, part: Part, payload: EncodedPayload | None) -> Handle[None]:
        with self._lock:
            errors = dict(self._errors)
        left = [peer for peer in self._peers if peer not in errors]
        handles = [Handle[None].failed(errors[peer]) for peer in errors]
        if payload is not None and left:
            transfers = self._transfer(part, payload, left)
            for peer, handle in transfers.items():
                handle.add_done_callback(partial(self._on_ended, peer))
            handles += [transfers[peer] for peer in sorted(transfers)]
        return all_ended(handles)

    def _on_ended(self, peer: int, transfer: Handle[None]) -> None:
        error = transfer.exception()
        if error is not None:
            with self._lock:
                self._errors.setdefault(peer, error)


def encoding_cost(tensor: torch.Tensor) -> int:
    """Bytes that encoding may take beside a tensor whose own memory is not sent."""
    is_plain = tensor.device.type == "cpu" and tensor.is_contiguous()
    # No payload is larger than the tensor; what has other strides is copied before.
    return tensor.nbytes if is_plain else 2 * tensor.nbytes


def _shares_memory(payload: EncodedPayload, tensor: torch.Tensor) -> bool:
    if payload.codec != "raw" or tensor.device.type != "cpu":
        return False
    return int(np.frombuffer(payload.body, np.uint8).ctypes.data) == tensor.data_ptr()
