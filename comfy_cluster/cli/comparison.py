"""Compares two batches bit by bit. Used by the demo."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Difference:
    """One item of a batch that is not what it should be."""

    item: int
    value_count: int
    """Values of the item whose bits differ."""
    first: tuple[int, ...]
    """Position, within the item, of the first of them."""
    actual: float
    expected: float


def find_differences(actual: torch.Tensor, expected: torch.Tensor) -> list[Difference]:
    """The items whose bits differ: NaN equals the same NaN, and -0.0 is not 0.0.

    Both are contiguous batches [B,...]. ValueError: their shapes or dtypes differ.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ValueError(f"got {_describe(actual)}, expected {_describe(expected)}")
    bits = _BITS[expected.element_size()]
    found = []
    for item, (one, other) in enumerate(zip(actual, expected, strict=True)):
        unequal = one.contiguous().view(bits) != other.contiguous().view(bits)
        if unequal.any():
            positions = unequal.nonzero()
            first = tuple(int(index) for index in positions[0])
            found.append(
                Difference(item, len(positions), first, float(one[first]), float(other[first]))
            )
    return found


def _describe(batch: torch.Tensor) -> str:
    return f"{list(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
