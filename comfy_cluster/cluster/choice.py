"""Which codec a tensor travels with: the one by which it is expected to be there first.

Used by `Payloads`, on the codec pool's threads; every choice gives the receiver the same bits.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from comfy_cluster import codec
from comfy_cluster.cluster.forecast import CodecSpeeds, Journey, expected_seconds
from comfy_cluster.cluster.links import Link
from comfy_cluster.codec.sample import Sample, begins_with_levels, take_sample
from comfy_cluster.config import ClusterConfig, Codec, ImagePrecision

logger = logging.getLogger("comfy_cluster.cluster")

RAW = "raw"
# Seconds that a raw transfer may take without a thought of doing better: a sample and the way to
# the codec pool and back take as long. What is no 8-bit image becomes a fifth smaller at most.
WORTH_A_SAMPLE = 1.5e-3
WORTH_A_SAMPLE_OF_VALUES = 12e-3
# Another codec must promise that much less time than raw: forecasts are not better than that.
_MARGIN = 0.95


@dataclass(frozen=True, slots=True)
class Choice:
    """One codec, and why."""

    codec: str
    reason: str
    """One of `REASONS`: the name of the counter."""
    text: str


REASONS = ("forced", "shared_memory", "small", "forecast")


class CodecChooser:
    """Chooses for one instance. Thread-safe."""

    def __init__(self, config: ClusterConfig, speeds: CodecSpeeds, *, thread_count: int) -> None:
        """`thread_count`: of the codec pool."""
        self._forced = None if config.codec is Codec.AUTO else str(config.codec)
        self._is_rounding = config.image_precision is ImagePrecision.UINT8
        self.speeds = speeds
        self._thread_count = thread_count
        self._lock = threading.Lock()  # guards the counters
        self._counts: Counter[str] = Counter()

    def quick_choice(self, tensor: torch.Tensor, link: Link) -> Choice | None:
        """The choice where it needs no look at the tensor; None: `choose` does it."""
        if self._forced is not None:
            return self._forced_choice(self._forced, link)
        if link.shares_memory:
            # What shared memory carries is not made smaller: that takes longer than copying it.
            return Choice(RAW, "shared_memory", "it goes through shared memory")
        seconds = tensor.nbytes / link.rate
        is_small = seconds < WORTH_A_SAMPLE
        if not is_small and seconds < WORTH_A_SAMPLE_OF_VALUES and tensor.device.type == "cpu":
            is_small = not self._is_rounding and not begins_with_levels(tensor)
        return Choice(RAW, "small", f"raw takes {seconds * 1e3:.1f} ms") if is_small else None

    def _forced_choice(self, name: str, link: Link) -> Choice:
        if name in link.codecs and name in codec.available_codecs():
            return Choice(name, "forced", "COMFY_CLUSTER_CODEC")
        where = "a receiver" if name in codec.available_codecs() else "this instance"
        return Choice(RAW, "forced", f"COMFY_CLUSTER_CODEC is {name}, which {where} does not have")

    def rounds(self, tensor: torch.Tensor, *, is_image: bool) -> bool:
        """Whether the tensor is rounded to 8-bit levels on its way."""
        return self._is_rounding and is_image and tensor.is_floating_point()

    def choose(self, tensor: torch.Tensor, link: Link, *, is_image: bool) -> Choice:
        """Looks at some rows of the tensor (about a millisecond), and compares."""
        candidates = [name for name in codec.available_codecs() if name in link.codecs]
        sample = take_sample(tensor, candidates, is_rounded=self.rounds(tensor, is_image=is_image))
        seconds = self._forecast(tensor, link, sample)
        raw = seconds[RAW]
        best = min(seconds, key=lambda name: seconds[name])
        chosen = best if seconds[best] < _MARGIN * raw else RAW
        return Choice(chosen, "forecast", _describe(seconds, link))

    def _forecast(self, tensor: torch.Tensor, link: Link, sample: Sample) -> dict[str, float]:
        part_count = len(codec.parts_of(tensor)) if link.takes_parts else 1
        seconds = {}
        for name, relative_size in sample.sizes.items():
            journey = Journey(
                size=tensor.nbytes,
                unit_count=tensor.numel() if sample.is_levels else tensor.nbytes,
                is_levels=sample.is_levels,
                part_count=1 if name == RAW else part_count,
                thread_count=self._thread_count,
                rate=link.rate,
            )
            if name == RAW or relative_size < 1.0:
                seconds[name] = expected_seconds(
                    journey, name, relative_size=relative_size, speeds=self.speeds
                )
        return seconds

    def count(self, choice: Choice, tensor: torch.Tensor) -> None:
        """One tensor goes by this choice."""
        with self._lock:
            self._counts[f"codec_{choice.codec}"] += 1
            self._counts[f"codec_choices_{choice.reason}"] += 1
        logger.debug(
            "> %s %s as %s: %s", list(tensor.shape), tensor.dtype, choice.codec, choice.text
        )

    def stats(self) -> Mapping[str, int]:
        """Tensors sent by codec and by reason of the choice."""
        names = [f"codec_{name}" for name in codec.CODECS]
        names += [f"codec_choices_{reason}" for reason in REASONS]
        with self._lock:
            return {name: self._counts[name] for name in names}


def _describe(seconds: Mapping[str, float], link: Link) -> str:
    expected = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in seconds.items())
    return f"expected at {link.rate / 1e6:.0f} MB/s: {expected}"
