"""What is transferred: tensors that each instance can work out alone, and the rounds of them.

Contents are slices of one block of random bytes that is the same everywhere: nothing is made or
copied for a round, so that what a process holds is what the transfers hold.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.transport.handle import Handle

BLOCK_SIZE = 48 << 20  # bytes
SMALLEST, LARGEST = 1 << 10, 32 << 20  # bytes of one collective's tensor
USUAL_LARGEST = 1 << 20  # one in each round is larger
KEYS = 3  # of each collective, at once
COLLECTIVES = ("broadcast", "fan-out", "fan-in", "all-gather")
DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.int64)
# What one item looks like. Those of three dimensions may be an image, and then PNG is tried.
ROWS: tuple[tuple[int, ...], ...] = ((), (8, 8, 3), (5, 7, 2, 3))
ALIGNMENT = 8  # bytes of the largest element
WAIT = 120.0  # seconds; a bound for a broken build, never waited for in a good one


@dataclass(frozen=True, slots=True)
class Plan:
    """One collective of one round; the same on every instance."""

    collective: str
    name: str
    source: int
    parts: list[torch.Tensor]
    """One for each instance: what it contributes. Views of the block."""

    @property
    def joined(self) -> torch.Tensor:
        return torch.cat(self.parts)


@dataclass(frozen=True, slots=True)
class Started:
    plan: Plan
    handle: Handle[list[torch.Tensor]]
    wanted: list[torch.Tensor]

    def finish(self) -> int:
        """Waits, and compares bit by bit. Returns the bytes of the result; AssertionError."""
        got = self.handle.result(WAIT)
        for own, expected in zip(got, self.wanted, strict=True):
            same = own.dtype == expected.dtype and own.shape == expected.shape
            assert same and torch.equal(_bytes_of(own), _bytes_of(expected)), (
                f"{self.plan.collective} {self.plan.name}: {own.shape} {own.dtype} differs"
            )
        return sum(each.nbytes for each in got)


def new_block(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (BLOCK_SIZE,), dtype=torch.uint8, generator=generator)


def plans_of(block: torch.Tensor, *, seed: int, number: int, instances: int) -> Iterator[Plan]:
    """The collectives of round `number`: sizes from 1 KB to tens of MB, one of them large."""
    rng = random.Random(f"{seed}/{number}")
    names = [(collective, f"key {key}") for collective in COLLECTIVES for key in range(KEYS)]
    large = rng.randrange(len(names))
    for position, (collective, name) in enumerate(names):
        smallest = USUAL_LARGEST if position == large else SMALLEST
        largest = LARGEST if position == large else USUAL_LARGEST
        size = int(math.exp(rng.uniform(math.log(smallest), math.log(largest))))
        dtype, row = rng.choice(DTYPES), rng.choice(ROWS)
        shares = [rng.random() for _ in range(instances)]
        parts = [
            _slice(block, int(size * share / sum(shares)), dtype, row, rng) for share in shares
        ]
        yield Plan(collective, name, rng.randrange(instances), parts)


def _slice(
    block: torch.Tensor, size: int, dtype: torch.dtype, row: tuple[int, ...], rng: random.Random
) -> torch.Tensor:
    """About `size` bytes of the block as items of shape `row`; there may be none."""
    row_bytes = math.prod(row) * dtype.itemsize
    length = size // row_bytes * row_bytes
    at = rng.randrange((len(block) - length) // ALIGNMENT) * ALIGNMENT
    return block[at : at + length].view(dtype).reshape(-1, *row)


def start_round(
    cluster: Cluster, job: str, plans: list[Plan], rng: random.Random
) -> Iterator[Started]:
    """All of them at once, in an order of this instance's own."""
    for plan in rng.sample(plans, len(plans)):
        key = CollectiveKey(job, f"{plan.collective} {plan.name}")
        yield Started(plan, *_start(cluster, key, plan))


def _start(
    cluster: Cluster, key: CollectiveKey, plan: Plan
) -> tuple[Handle[list[torch.Tensor]], list[torch.Tensor]]:
    index, parts = cluster.instance_index, plan.parts
    own = parts[index]
    if plan.collective == "all-gather":
        return cluster.all_gather(key, own), parts
    if plan.collective == "fan-in":
        wanted = plan.joined if index == 0 else own
        return cluster.fan_in(key, own).then(_in_list), [wanted]
    if plan.collective == "fan-out":
        batch = parts[0]
        slices = torch.tensor_split(batch, cluster.instance_count)
        handle = cluster.fan_out(key, batch if index == 0 else None)
        return handle.then(_in_list), [slices[index]]
    whole = parts[plan.source]
    given = whole if index == plan.source else None
    return cluster.broadcast(key, given, source=plan.source).then(_in_list), [whole]


def _in_list(tensor: torch.Tensor) -> list[torch.Tensor]:
    return [tensor]


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Floats of random bytes may be NaN, which is equal to nothing."""
    return tensor.contiguous().view(torch.uint8)
