"""Puts the parts of a tensor together: each is decoded straight to its place.

Called by `cluster/`, on the codec pool's threads, several at the same time.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from comfy_cluster.codec.blosc import compressor_of
from comfy_cluster.codec.envelope import Envelope, parse_envelope
from comfy_cluster.codec.image_codecs import name_of_file
from comfy_cluster.codec.parts import Place
from comfy_cluster.codec.tensors import (
    SURELY_DECODED_SIZE,
    Allocate,
    allocate_tensor,
    check_data,
    check_inflation,
    checked_head,
    checked_size,
    decode_into,
)
from comfy_cluster.errors import CorruptPayload

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class Contents:
    """What a payload says of itself."""

    codec: str
    holds_levels: bool
    place: Place | None
    """Where its tensor belongs in a larger one; None: it is all of it."""


def contents_of(data: Buffer) -> Contents:
    """Looks at the envelope, and at the first bytes of what is compressed. `CorruptPayload`."""
    envelope = parse_envelope(memoryview(data).cast("B"))
    if envelope.images:
        return Contents(name_of_file(envelope.images[0]), True, envelope.place)
    name = compressor_of(envelope.blocks[0]) if envelope.blocks else "raw"
    return Contents(name, False, envelope.place)


class Assembly:
    """A tensor in the making. Thread-safe."""

    def __init__(
        self, first: Buffer, *, size_limit: int | None = None, allocate: Allocate | None = None
    ) -> None:
        """`first`: the payload of part 0. The other arguments are those of `decode`.

        Raises `CorruptPayload`, or MemoryError.
        """
        envelope = parse_envelope(memoryview(first).cast("B"))
        if envelope.place is None:
            raise CorruptPayload("corrupt payload: it is no part of a tensor")
        self._place = envelope.place
        self._dtype, size = checked_head(envelope)
        check_inflation(size, memoryview(first).nbytes)
        check_data(envelope, self._dtype, size)
        self._check_whole(envelope, size_limit)
        self._tensor = allocate_tensor(
            self._place.whole, self._dtype, size_limit=size_limit, allocate=allocate
        )
        self._flat = self._tensor.view(-1)
        self._lock = threading.Lock()  # guards the field below
        self._spans: dict[int, tuple[int, int]] = {}

    def _check_whole(self, first: Envelope, size_limit: int | None) -> None:
        """So few bytes cannot claim a huge whole: `parts_of` makes the first part the largest."""
        whole, count = self._place.whole, self._place.count
        size = checked_size(whole, self._dtype, size_limit)
        if size > SURELY_DECODED_SIZE and math.prod(first.shape) * count < math.prod(whole):
            raise CorruptPayload(
                f"corrupt payload: {count} parts of {list(first.shape)} are no {list(whole)}"
            )

    def add(self, index: int, data: Buffer) -> torch.Tensor:
        """Decodes part `index`, and returns its values: a flat view of the tensor's memory.

        Raises `CorruptPayload` where it does not belong here.
        """
        envelope = parse_envelope(memoryview(data).cast("B"))
        first, end = self._take_span(index, envelope)
        dtype, size = checked_head(envelope)
        check_inflation(size, memoryview(data).nbytes)
        check_data(envelope, dtype, size)
        values = self._flat[first:end]
        decode_into(values, envelope)
        return values

    def _take_span(self, index: int, envelope: Envelope) -> tuple[int, int]:
        place = envelope.place
        if place is None or (place.whole, place.count) != (self._place.whole, self._place.count):
            raise CorruptPayload(f"corrupt payload: part {index} is of another tensor")
        if not 0 <= index < place.count:
            raise CorruptPayload(f"corrupt payload: part {index} of {place.count}")
        if envelope.dtype != str(self._dtype).removeprefix("torch."):
            raise CorruptPayload(f"corrupt payload: part {index} is of dtype {envelope.dtype}")
        first, end = place.first, place.first + math.prod(envelope.shape)
        if end > self._flat.numel():
            raise CorruptPayload(
                f"corrupt payload: part {index} ends at element {end} of {self._flat.numel()}"
            )
        with self._lock:
            if index in self._spans:
                raise CorruptPayload(f"corrupt payload: part {index} comes twice")
            self._spans[index] = (first, end)
        return first, end

    def finish(self) -> torch.Tensor:
        """The tensor, once all parts were added; `CorruptPayload` if they do not fill it."""
        expected = 0
        for index in range(self._place.count):
            first, end = self._spans.get(index, (-1, -1))
            if first != expected:
                raise CorruptPayload(
                    f"corrupt payload: part {index} begins at element {first}, not {expected}"
                )
            expected = end
        if expected != self._flat.numel():
            raise CorruptPayload(
                f"corrupt payload: the parts hold {expected} elements of {self._flat.numel()}"
            )
        return self._tensor
