"""The tensors of one instance in one transfer: made, marked, and checked. No network.

All ways of a row share them: the same source memory, and one destination that is allocated and
touched before the first round, for those ways that want to be given one.
"""

from __future__ import annotations

import torch
import xxhash

from comfy_cluster.benchmarks.contents import LEVEL_COUNT, make_content, values_of
from comfy_cluster.benchmarks.transfers import Kind, Transfer

MARK_COUNT = 257  # values that change from round to round, evenly spread
PAGE_FLOATS = 1024  # values of a page of 4 KiB


class Tensors:
    """What instance `index` has, and where it may put what it gets."""

    def __init__(self, transfer: Transfer, index: int) -> None:
        self.transfer = transfer
        self.index = index
        parts = range(transfer.part_count)
        own = [part for part in parts if transfer.owner(part) == index]
        self.source = _make(transfer, own, seed=index) if own else None
        """All that this instance has, as one tensor."""
        self.own = dict(zip(own, _cut(self.source, len(own)), strict=True))
        """By part: what this instance has."""
        self.wanted = [leg.part for leg in transfer.legs_to(index)]
        self._destination: torch.Tensor | None = None
        self._places: dict[int, torch.Tensor] = {}

    @property
    def destination(self) -> torch.Tensor:
        """Memory for all parts that this instance is to have at the end, joined along dim 0.

        After a fan-in that is the leader's own part too. Touched, so that no way pays for that.
        """
        if self._destination is None:
            parts = self._final_parts
            shape = self.transfer.part_shape
            self._destination = torch.zeros(len(parts) * shape[0], *shape[1:])
            self._places = dict(zip(parts, _cut(self._destination, len(parts)), strict=True))
        return self._destination

    @property
    def _final_parts(self) -> list[int]:
        if self.transfer.kind in (Kind.FAN_IN, Kind.ALL_GATHER) and self.wanted:
            return list(range(self.transfer.part_count))
        return self.wanted

    def place(self, part: int) -> torch.Tensor:
        """The destination's memory for one part."""
        _ = self.destination
        return self._places[part]

    def clear(self) -> None:
        """Empties the destination, so that nothing that another way left there passes."""
        if self._destination is not None:
            self._destination.zero_()

    def mark(self, number: int) -> None:
        """Writes values of round `number` all over the source, so that no old result passes."""
        for part, tensor in self.own.items():
            flat = tensor.view(-1)
            positions = _positions(flat)
            levels = (positions + number * 31 + part * 7) % LEVEL_COUNT
            flat[positions] = values_of(levels)


def touch(tensor: torch.Tensor) -> None:
    """Reads one value of each page, as the first who reads the tensor must."""
    tensor.reshape(-1)[::PAGE_FLOATS].sum()


def check_value(tensor: torch.Tensor, *, is_full: bool) -> str:
    """A digest of all bytes, or of those that `mark` changes. Equal tensors have equal ones."""
    flat = tensor.detach().contiguous().view(-1)
    if not is_full:
        flat = flat[_positions(flat)]
    shape = "x".join(map(str, tensor.shape))
    return f"{shape} {tensor.dtype} {xxhash.xxh3_128_hexdigest(flat.numpy().data)}"


def _positions(flat: torch.Tensor) -> torch.Tensor:
    return torch.linspace(0, len(flat) - 1, min(MARK_COUNT, len(flat)), dtype=torch.float64).long()


def _make(transfer: Transfer, own: list[int], *, seed: int) -> torch.Tensor:
    first, *rest = transfer.part_shape
    shape = (len(own) * first, *rest)
    return make_content(transfer.content, shape, torch.Generator().manual_seed(seed))


def _cut(tensor: torch.Tensor | None, count: int) -> list[torch.Tensor]:
    return [] if tensor is None or count == 0 else list(tensor.chunk(count))
