"""A large tensor in parts, each of which travels as a payload of its own.

So the first part is on its way, and decoded, before the last one is encoded, and several threads
work at one tensor. A part is a slice whose elements lie together in the whole (C order): whole
items of a batch where they are small, rows of one item where they are large.
Pure functions; called by `cluster/`. `assembly.py` puts the parts together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Bytes of a part. Smaller ones overlap better, but each costs its sender and receiver messages of
# 1 to 2 ms; this much takes 2 to 15 ms to encode. Half of an image of 1024x1024.
PART_SIZE = 6 << 20
LARGEST_PART_COUNT = 256  # of one tensor; parts get larger for that
_AIMED_COUNT = LARGEST_PART_COUNT // 4  # slices that do not come out even make more


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part belongs."""

    whole: tuple[int, ...]
    """Shape of the tensor that it is a part of."""
    first: int
    """Index of its first element among those of the whole."""
    count: int
    """How many parts the whole has."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a tensor, and its number."""

    index: int
    values: torch.Tensor
    place: Place | None
    """None: it is all of the tensor."""


def parts_of(tensor: torch.Tensor) -> list[Part]:
    """Views of the parts of a tensor of any strides, in order; one if it is not worth cutting."""
    size = max(PART_SIZE, tensor.nbytes // _AIMED_COUNT)
    whole = tuple(tensor.shape)
    if tensor.nbytes <= PART_SIZE:
        return [Part(0, tensor, None)]
    slices = list(_slices(whole, (), size // tensor.itemsize))
    parts, first = [], 0
    for index, place in enumerate(slices):
        values = tensor[place]
        parts.append(Part(index, values, Place(whole, first, len(slices))))
        first += values.numel()
    return parts


def _slices(
    shape: tuple[int, ...], outer: tuple[slice, ...], element_count: int
) -> Iterator[tuple[slice, ...]]:
    """Index tuples of slices of at most `element_count` elements, in C order."""
    rows = element_count // max(1, math.prod(shape[1:]))
    if rows:
        even = -(-shape[0] // -(-shape[0] // rows))  # as many slices, of one size
        for start in range(0, shape[0], even):
            yield (*outer, slice(start, min(start + even, shape[0])))
        return
    for index in range(shape[0]):
        yield from _slices(shape[1:], (*outer, slice(index, index + 1)), element_count)
