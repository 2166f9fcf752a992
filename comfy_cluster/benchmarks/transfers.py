"""What is moved in a round: who has which part of a tensor, and who is to get it. No tensor here.

A transfer is made of *legs*: one part from its owner to one receiver. A way that has no collectives
of its own sends the legs one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

FLOAT_SIZE = 4  # bytes; all tensors are float32, as IMAGE and MASK are
IMAGE_SIDE = 1024  # pixels
CHANNEL_COUNT = 3
BATCH = (32, IMAGE_SIDE, IMAGE_SIDE, CHANNEL_COUNT)  # architecture.md section 6


class Kind(Enum):
    """The shape of a transfer, by the names that the cluster's collectives have."""

    POINT_TO_POINT = "point-to-point"
    FAN_OUT = "fan-out"
    FAN_IN = "fan-in"
    BROADCAST = "broadcast"
    ALL_GATHER = "all-gather"


class Content(Enum):
    """What the tensor holds."""

    RANDOM = "random floats"
    """As a VAE's output, nothing compresses it."""
    IMAGE = "8-bit image"
    """Every value is k/255, neighbours are alike."""
    PHOTOGRAPH = "8-bit photograph"
    """Real ones: see `photographs.py`."""
    NOISY_PHOTOGRAPH = "noisy photograph"
    """The same and noise, as a VAE's output: no 8-bit image."""
    SOFT_MASK = "soft mask"
    LEVEL_MASK = "soft mask, 8 bits"
    BINARY_MASK = "mask of 0 and 1"
    NOISE_LATENT = "latent, noise"
    SMOOTH_LATENT = "latent, smooth"


@dataclass(frozen=True, slots=True)
class Leg:
    """One part on its way from its owner to one receiver."""

    sender: int
    receiver: int
    part: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor (all-gather: one of each instance) and where it goes."""

    kind: Kind
    shape: tuple[int, ...]
    """Of the whole tensor; all-gather: of each instance's."""
    instance_count: int = 2
    source: int = 0
    """Point to point and broadcast: who has the tensor."""
    content: Content = Content.RANDOM

    def __post_init__(self) -> None:
        if self.instance_count < 2:
            raise ValueError("a transfer needs two instances or more")
        if self.kind is Kind.POINT_TO_POINT and self.instance_count != 2:
            raise ValueError(f"point to point is between 2 instances, not {self.instance_count}")
        if self.is_split and self.shape[0] % self.instance_count:
            raise ValueError(
                f"{self.shape[0]} items cannot be shared evenly by {self.instance_count} instances"
            )

    @property
    def is_split(self) -> bool:
        """Whether a part is a slice of the tensor and not the whole of it."""
        return self.kind in (Kind.FAN_OUT, Kind.FAN_IN)

    @property
    def part_count(self) -> int:
        is_whole = self.kind in (Kind.POINT_TO_POINT, Kind.BROADCAST)
        return 1 if is_whole else self.instance_count

    @property
    def part_shape(self) -> tuple[int, ...]:
        if not self.is_split:
            return self.shape
        return (self.shape[0] // self.instance_count, *self.shape[1:])

    @property
    def part_bytes(self) -> int:
        return math.prod(self.part_shape) * FLOAT_SIZE

    @property
    def tensor_bytes(self) -> int:
        """Of the tensor that the row is about; all-gather: of each instance's."""
        return math.prod(self.shape) * FLOAT_SIZE

    @property
    def delivered_bytes(self) -> int:
        """What arrives in other processes, all together."""
        return len(self.legs) * self.part_bytes

    def owner(self, part: int) -> int:
        """The instance that has the part at the start."""
        if self.kind in (Kind.POINT_TO_POINT, Kind.BROADCAST):
            return self.source
        return 0 if self.kind is Kind.FAN_OUT else part

    def receivers(self, part: int) -> list[int]:
        """The other instances that get the part."""
        others = [each for each in range(self.instance_count) if each != self.owner(part)]
        if self.kind is Kind.FAN_OUT:
            return [part] if part else []
        if self.kind is Kind.FAN_IN:
            return [0] if part else []
        return others

    @property
    def legs(self) -> tuple[Leg, ...]:
        return tuple(
            Leg(self.owner(part), receiver, part)
            for part in range(self.part_count)
            for receiver in self.receivers(part)
        )

    def legs_from(self, instance: int) -> list[Leg]:
        return [leg for leg in self.legs if leg.sender == instance]

    def legs_to(self, instance: int) -> list[Leg]:
        return [leg for leg in self.legs if leg.receiver == instance]


def point_to_point(megabytes: float) -> Transfer:
    """One tensor of that many million bytes, from instance 0 to instance 1."""
    return Transfer(Kind.POINT_TO_POINT, (_float_count(megabytes),))


def one_image() -> Transfer:
    """One 8-bit image from the follower to the leader."""
    shape = (1, IMAGE_SIDE, IMAGE_SIDE, CHANNEL_COUNT)
    return Transfer(Kind.POINT_TO_POINT, shape, source=1, content=Content.IMAGE)


def collective(kind: Kind, instance_count: int, megabytes: float | None = None) -> Transfer:
    """A batch for a collective: `megabytes`, or else the batch of 32 images of the goals.

    Split kinds: the items are as many that they can be shared evenly.
    """
    if megabytes is None and BATCH[0] % instance_count == 0:
        return Transfer(kind, BATCH, instance_count)
    count = _float_count(megabytes) if megabytes is not None else math.prod(BATCH)
    items = 8 * instance_count
    return Transfer(kind, (items, max(1, count // items)), instance_count)


def all_gather(instance_count: int, megabytes: float | None = None) -> Transfer:
    """An all-gather in which each instance has `megabytes`, or else two images."""
    shape = (2, *BATCH[1:]) if megabytes is None else (_float_count(megabytes),)
    return Transfer(Kind.ALL_GATHER, shape, instance_count)


def _float_count(megabytes: float) -> int:
    return max(1, int(megabytes * 1e6) // FLOAT_SIZE)
