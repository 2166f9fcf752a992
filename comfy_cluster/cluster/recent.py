"""The last choices of codecs: tensors like the last one go as it did, for a few times.

A look at a tensor takes 1 to 4 ms on a busy machine, and the items of a workflow resemble each
other. What is chosen wrongly costs time, never bits, and only until the next look. Used by
`CodecChooser`.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from comfy_cluster.cluster.links import Link

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

USES = 5  # of one choice before the next look
_RATE_STEP = 1.25  # links whose rates differ by more than that are different links
_LARGEST_COUNT = 64  # kinds that are remembered


@dataclass(frozen=True, slots=True)
class Kind:
    """What tensors and links have in common for which one choice is right."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    seems_levels: bool
    is_image: bool
    codecs: frozenset[str]
    takes_parts: bool
    rate_step: int

    @classmethod
    def of(cls, tensor: torch.Tensor, link: Link, *, seems_levels: bool, is_image: bool) -> Kind:
        step = round(math.log(max(link.rate, 1.0), _RATE_STEP))
        return cls(
            tuple(tensor.shape),
            tensor.dtype,
            seems_levels,
            is_image,
            link.codecs,
            link.takes_parts,
            step,
        )


class RecentChoices(Generic[T]):
    """By kind the last choice, while it may be used again. Thread-safe."""

    def __init__(self) -> None:
        self._left: OrderedDict[Kind, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, kind: Kind) -> T | None:
        """Uses the choice for this kind once more; None: it is time for a look."""
        with self._lock:
            choice, left = self._left.pop(kind, (None, 0))
            if choice is not None and left > 1:
                self._left[kind] = (choice, left - 1)
            return choice

    def put(self, kind: Kind, choice: T) -> None:
        """A look was taken, and that was chosen."""
        with self._lock:
            self._left.pop(kind, None)
            self._left[kind] = (choice, USES)
            if len(self._left) > _LARGEST_COUNT:
                self._left.popitem(last=False)
