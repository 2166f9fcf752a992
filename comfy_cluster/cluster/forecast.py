"""How long a tensor takes from here to a peer's memory, by codec: an estimate, made beforehand.

Pure bookkeeping, no clock: who encodes and decodes tells how long it took.

How it works. A tensor of n parts goes through three stages: encode, send, decode. Parts overlap, so
the time is that of the first part through all stages, and for each further one that of the slowest
stage; encoding and decoding are shared by threads. How fast a codec is, is first known from a table
and then from what is measured here; the table's other rows are scaled by how this machine compares
to it so far. What a peer's machine decodes is taken to be as fast as what this one does.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# A further part costs that much in messages on both sides, whatever it holds.
PART_SECONDS = 1.2e-3
_WEIGHT = 0.2  # of a new measurement: the last dozen count
_LARGEST_STEP = 4.0  # times longer or shorter than expected; more is a stall, not a speed
_FORGETTING = 0.02  # of what was learned, with each forecast: unused codecs get a chance again
SMALLEST_MEASURED = 256 << 10  # bytes of tensor; less says more about Python than about the codec


class Work(Enum):
    """What a codec does."""

    ENCODE = "encode"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of codec work."""

    codec: str
    work: Work
    is_levels: bool
    """On 8-bit levels; else on a tensor's memory."""


def _seeds() -> dict[Stage, float]:
    """Seconds for a level, or for a byte of other tensors: one core of an AMD EPYC, 2026."""
    levels = {  # nanoseconds: encode, decode
        "raw": (0.0, 0.0),
        "raw8": (0.7, 0.4),
        "bitpack": (1.1, 0.9),
        "lz4": (1.6, 1.0),
        "zstd": (2.8, 1.4),
        "png": (16.0, 7.0),
        "webp": (12.0, 5.5),
    }
    memory = {"raw": (0.0, 0.0), "lz4": (0.6, 0.25), "zstd": (0.9, 0.35)}
    return {
        Stage(codec, work, is_levels): time * 1e-9
        for is_levels, table in ((True, levels), (False, memory))
        for codec, times in table.items()
        for work, time in zip((Work.ENCODE, Work.DECODE), times, strict=True)
    }


class CodecSpeeds:
    """Seconds for a unit (a level, or a byte) of each stage of codec work. Thread-safe."""

    def __init__(self) -> None:
        self._seeds = _seeds()
        self._measured: dict[Stage, float] = {}
        self._machine_factor = 1.0  # how many times longer than in the table things take here
        self._lock = threading.Lock()  # guards the fields above

    def learn(self, stage: Stage, values: torch.Tensor, *, seconds: float) -> None:
        """That took so many seconds for those values; small tensors teach nothing."""
        if not self._seeds.get(stage) or values.nbytes < SMALLEST_MEASURED:
            return
        measured = seconds / (values.numel() if stage.is_levels else values.nbytes)
        with self._lock:
            before = self._expected(stage)
            bounded = min(max(measured, before / _LARGEST_STEP), before * _LARGEST_STEP)
            self._measured[stage] = before + _WEIGHT * (bounded - before)
            self._compare_with_table()

    def forget_a_little(self) -> None:
        """What was learned comes nearer to the table: called with each forecast."""
        with self._lock:
            for stage, measured in self._measured.items():
                seed = self._seeds[stage]
                self._measured[stage] = seed * (measured / seed) ** (1 - _FORGETTING)
            self._compare_with_table()

    def seconds_per_unit(self, stage: Stage) -> float:
        """Expected; 0.0 where the codec has nothing to do."""
        with self._lock:
            return self._expected(stage)

    def _expected(self, stage: Stage) -> float:
        if stage in self._measured:
            return self._measured[stage]
        return self._seeds.get(stage, 0.0) * self._machine_factor

    def _compare_with_table(self) -> None:
        factors = sorted(
            measured / self._seeds[stage] for stage, measured in self._measured.items()
        )
        self._machine_factor = factors[len(factors) // 2] if factors else 1.0


@dataclass(frozen=True, slots=True)
class Journey:
    """What is known of one tensor and its way before it is sent."""

    size: int
    """Bytes of the tensor."""
    unit_count: int
    """Levels if it is of levels, else bytes."""
    is_levels: bool
    part_count: int
    thread_count: int
    rate: float
    """Bytes a second of the link."""


def expected_seconds(
    journey: Journey, codec: str, *, relative_size: float, speeds: CodecSpeeds
) -> float:
    """From the begin of encoding until the last part is decoded.

    `relative_size`: bytes of payload for a byte of tensor. A raw payload is one part, and nothing
    is made of it: it is the tensor, here and there.
    """
    units = journey.unit_count / journey.part_count
    encode, decode = (
        units * speeds.seconds_per_unit(Stage(codec, work, journey.is_levels)) for work in Work
    )
    send = journey.size * relative_size / journey.part_count / journey.rate
    threads = min(journey.thread_count, journey.part_count)
    slowest = max(encode / threads, send, decode / threads, PART_SECONDS)
    return encode + send + decode + (journey.part_count - 1) * slowest


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of one codec."""

    seconds: float
    is_cut: bool
    """In parts; else in one payload."""


def forecast_for(
    journey: Journey, codec: str, *, relative_size: float, speeds: CodecSpeeds
) -> Forecast:
    """The better of in parts and in one."""
    whole = replace(journey, part_count=1)
    in_one = expected_seconds(whole, codec, relative_size=relative_size, speeds=speeds)
    if codec == "raw":
        return Forecast(in_one, False)
    cut = expected_seconds(journey, codec, relative_size=relative_size, speeds=speeds)
    return Forecast(min(in_one, cut), cut < in_one)
