"""Large tensors piece by piece, so that work on them can be interrupted. Called by the codec."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from comfy_cluster.codec.interruption import PIECE_SIZE, check_interruption


def pieces(values: torch.Tensor, count: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Each `count` elements of a flat tensor, with their place in it."""
    for start in range(0, values.numel(), count):
        check_interruption()
        place = slice(start, start + count)
        yield place, values[place]


def copy_of(values: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU, without gradient and torch's "negative" mark."""
    target = torch.empty(values.shape, dtype=values.dtype, device="cpu")
    _copy(values.detach(), target)
    return target


def _copy(values: torch.Tensor, target: torch.Tensor) -> None:
    if target.nbytes <= PIECE_SIZE:
        check_interruption()
        target.copy_(values)
        return
    row_size = target.nbytes // len(target)
    count = PIECE_SIZE // row_size  # 0: a row is cut further
    for start in range(0, len(target), max(count, 1)):
        rows = slice(start, start + count) if count else start
        _copy(values[rows], target[rows])


def copy_octets(source: memoryview, target: torch.Tensor) -> None:
    """Bytes into a flat uint8 tensor of their size."""
    octets = np.frombuffer(source, np.uint8)
    for place, piece in pieces(target, PIECE_SIZE):
        np.copyto(piece.numpy(), octets[place])


def are_booleans(octets: torch.Tensor) -> bool:
    """Whether each byte is 0 or 1; torch computes nonsense with a bool tensor that holds others."""
    return all(int(piece.max()) <= 1 for _, piece in pieces(octets, PIECE_SIZE))


def as_booleans(octets: torch.Tensor) -> torch.Tensor:
    """A copy in which each byte is 0 or 1."""
    target = torch.empty(octets.shape, dtype=torch.bool, device="cpu")
    for place, piece in pieces(octets, PIECE_SIZE):
        target[place] = piece.ne(0)
    return target
