"""What one instance measured in the demo, and how it travels: a row of numbers. No I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Measures:
    """One instance's share of the demo."""

    items: int = 0
    compute_seconds: float = 0.0
    bytes_sent: int = 0
    """Of packets, with headers and what was sent again, and of payloads through shared memory."""
    bytes_received: int = 0
    chunks_retransmitted: int = 0
    transfer_seconds: float = 0.0
    """Time in which images were on their way to or from this instance, encoding included."""

    @property
    def megabytes_per_second(self) -> float:
        """Both directions together; 0.0 where nothing was transferred."""
        if not self.transfer_seconds:
            return 0.0
        return (self.bytes_sent + self.bytes_received) / 1e6 / self.transfer_seconds

    def to_tensor(self) -> torch.Tensor:
        """float64 [1, fields], so that it can be gathered like any batch."""
        return torch.tensor([dataclasses.astuple(self)], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, row: torch.Tensor) -> Measures:
        """The inverse of `to_tensor`."""
        items, compute, sent, received, retransmitted, transfer = row.flatten().tolist()
        return cls(int(items), compute, int(sent), int(received), int(retransmitted), transfer)


def union_seconds(intervals: Iterable[Interval]) -> float:
    """How long at least one of the intervals (start, end) lasted."""
    total = 0.0
    covered_until = float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, covered_until))
        covered_until = max(covered_until, end)
    return total
