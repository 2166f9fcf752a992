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
from comfy_cluster.cluster.forecast import CodecSpeeds, Forecast, Journey, forecast_for
from comfy_cluster.cluster.links import Link
from comfy_cluster.codec.sample import Sample, begins_with_levels, take_sample
from comfy_cluster.config import ClusterConfig, Codec, ImagePrecision

logger = logging.getLogger("comfy_cluster.cluster")

RAW = "raw"
PLAIN = frozenset({RAW, "raw8"})  # what compresses nothing
# Seconds that a raw transfer may take without a thought of doing better: a sample and the way to
# the codec pool and back take as long. What is no 8-bit image gains little, and costs the most.
WORTH_A_SAMPLE = 1.5e-3
WORTH_A_SAMPLE_OF_VALUES = 30e-3
# Another codec must promise that much less time than raw: forecasts are not better than that.
_MARGIN = 0.95


@dataclass(frozen=True, slots=True)
class Choice:
    """One codec, and why."""

    codec: str
    reason: str
    """One of `REASONS`: the name of the counter."""
    text: str
    is_cut: bool = True
    """In parts, where the tensor's own memory is not sent."""


REASONS = ("forced", "shared_memory", "local", "small", "forecast")


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
        if link.is_local:
            # What is slow there is the processor, and a codec is one more thing for it to do.
            return Choice(RAW, "local", "it stays on this machine")
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
        self.speeds.forget_a_little()
        known = link.codecs | {RAW}  # which needs no codec
        names = [name for name in codec.available_codecs() if name in known]
        sample = take_sample(tensor, is_rounded=self.rounds(tensor, is_image=is_image))
        journey = self._journey(tensor, link, sample)
        plain = [name for name in names if name in PLAIN]
        forecasts = self._forecasts(journey, sample.sizes(plain))
        fastest = min(each.seconds for each in forecasts.values())
        # Compressing is left out where it would take too long even if nothing had to be sent then.
        free = self._forecasts(journey, dict.fromkeys(set(names) - PLAIN, 0.0))
        worthy = [name for name in names if name in free and free[name].seconds < fastest]
        forecasts |= self._forecasts(journey, sample.sizes(worthy))
        best = min(forecasts, key=lambda name: forecasts[name].seconds)
        chosen = best if forecasts[best].seconds < _MARGIN * forecasts[RAW].seconds else RAW
        text = _describe(forecasts, link)
        return Choice(chosen, "forecast", text, is_cut=forecasts[chosen].is_cut)

    def _journey(self, tensor: torch.Tensor, link: Link, sample: Sample) -> Journey:
        return Journey(
            size=tensor.nbytes,
            unit_count=tensor.numel() if sample.is_levels else tensor.nbytes,
            is_levels=sample.is_levels,
            part_count=len(codec.parts_of(tensor)) if link.takes_parts else 1,
            thread_count=self._thread_count,
            rate=link.rate,
        )

    def _forecasts(self, journey: Journey, sizes: Mapping[str, float]) -> dict[str, Forecast]:
        """By codec, in parts or in one, whichever is sooner there; none that makes nothing less."""
        return {
            name: forecast_for(journey, name, relative_size=size, speeds=self.speeds)
            for name, size in sizes.items()
            if name == RAW or size < 1.0
        }

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


def _describe(forecasts: Mapping[str, Forecast], link: Link) -> str:
    expected = ", ".join(f"{name} {each.seconds * 1e3:.1f} ms" for name, each in forecasts.items())
    return f"expected at {link.rate / 1e6:.0f} MB/s: {expected}"
