"""What codecs make of one tensor: how small, how fast, whether the same bits come back. Pure.

`form_rounds.py` measures it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_cluster.benchmarks.photographs import COLLAGE, PHOTOGRAPHS
from comfy_cluster.benchmarks.results import FEWEST_ROUNDS, Table
from comfy_cluster.benchmarks.transfers import Content

LATENT_CHANNELS = 16
LATENT_SCALE = 8  # pixels of an image for a value of its latent, along each side


@dataclass(frozen=True, slots=True)
class Specimen:
    """A tensor that codecs are tried on."""

    name: str
    content: Content
    shape: tuple[int, ...]
    dtype: str = "float32"
    photograph: int = 0
    """Its number, where it is one."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One call."""

    seconds: float
    cpu_seconds: float
    """Of its thread: what it takes on a machine where no other program is."""


@dataclass(frozen=True, slots=True)
class Form:
    """One codec and one specimen."""

    codec: str
    """As it was asked for."""
    taken: str
    """The form that it took: raw where the codec has none for such a tensor."""
    tensor_size: int
    """Bytes."""
    payload_size: int
    is_exact: bool
    encoded: tuple[Timing, ...]
    decoded: tuple[Timing, ...]

    @property
    def ratio(self) -> float:
        """Bytes of tensor for a byte of payload."""
        return self.tensor_size / self.payload_size


def photograph_specimens(side: int) -> list[Specimen]:
    """Each photograph, float32."""
    shape = (1, side, side, 3)
    return [
        Specimen(name, Content.PHOTOGRAPH, shape, photograph=number)
        for number, name in enumerate(PHOTOGRAPHS)
    ]


def other_specimens(side: int) -> list[Specimen]:
    """Everything else that nodes send."""
    image, mask = (1, side, side, 3), (1, side, side)
    latent = (1, LATENT_CHANNELS, side // LATENT_SCALE, side // LATENT_SCALE)
    masks = (Content.LEVEL_MASK, Content.BINARY_MASK, Content.SOFT_MASK)
    return [
        Specimen(f"{COLLAGE} uint8", Content.PHOTOGRAPH, image, "uint8"),
        Specimen(f"{COLLAGE} float16", Content.PHOTOGRAPH, image, "float16"),
        Specimen(f"{COLLAGE} bfloat16", Content.PHOTOGRAPH, image, "bfloat16"),
        Specimen(f"noisy {COLLAGE}", Content.NOISY_PHOTOGRAPH, image),
        Specimen(f"noisy {COLLAGE} float16", Content.NOISY_PHOTOGRAPH, image, "float16"),
        *(Specimen(content.value, content, mask) for content in masks),
        Specimen(Content.NOISE_LATENT.value, Content.NOISE_LATENT, latent),
        Specimen(Content.SMOOTH_LATENT.value, Content.SMOOTH_LATENT, latent),
        Specimen("latent, smooth, float16", Content.SMOOTH_LATENT, latent, "float16"),
        Specimen("latent, smooth, bfloat16", Content.SMOOTH_LATENT, latent, "bfloat16"),
    ]


def forms_table(row: str, title: str, forms: Mapping[Specimen, Sequence[Form]]) -> Table:
    """The codecs beside each other, specimen by specimen."""
    lines = [
        _line(specimen if number == 0 else None, form)
        for specimen, of_specimen in forms.items()
        for number, form in enumerate(of_specimen)
    ]
    columns = ("tensor", "codec", "goes as", "ratio", "encode ms", "CPU", "decode ms", "CPU")
    values = [_specimen_json(specimen, of_specimen) for specimen, of_specimen in forms.items()]
    return Table(
        row, title, (*columns, "exact"), tuple(lines), {"specimens": values}, _notes(forms)
    )


def _line(specimen: Specimen | None, form: Form) -> tuple[str, ...]:
    times = [
        f"{value * 1e3:.2f}"
        for timings in (form.encoded, form.decoded)
        for value in (_median(timings).seconds, _median(timings).cpu_seconds)
    ]
    return (
        "" if specimen is None else specimen.name,
        form.codec,
        form.taken,
        f"{form.ratio:.2f}",
        *times,
        "yes" if form.is_exact else "NO",
    )


def _median(timings: Sequence[Timing]) -> Timing:
    return Timing(
        statistics.median(each.seconds for each in timings),
        statistics.median(each.cpu_seconds for each in timings),
    )


def _specimen_json(specimen: Specimen, forms: Sequence[Form]) -> dict[str, Any]:
    return {
        "name": specimen.name,
        "content": specimen.content.value,
        "shape": list(specimen.shape),
        "dtype": specimen.dtype,
        "codecs": [_form_json(form) for form in forms],
    }


def _form_json(form: Form) -> dict[str, Any]:
    return {
        "codec": form.codec,
        "taken": form.taken,
        "tensor_bytes": form.tensor_size,
        "payload_bytes": form.payload_size,
        "ratio": form.ratio,
        "is_exact": form.is_exact,
        "encode": _timing_json(form.encoded),
        "decode": _timing_json(form.decoded),
    }


def _timing_json(timings: Sequence[Timing]) -> dict[str, Any]:
    median = _median(timings)
    return {
        "seconds": [each.seconds for each in timings],
        "median_seconds": median.seconds,
        "median_cpu_seconds": median.cpu_seconds,
    }


def _notes(forms: Mapping[Specimen, Sequence[Form]]) -> tuple[str, ...]:
    notes = ["one thread each; CPU: its processor time in ms, where other programs were running"]
    if any(len(form.encoded) < FEWEST_ROUNDS for each in forms.values() for form in each):
        notes.append(f"fewer than {FEWEST_ROUNDS} rounds: take the figures for a first look only")
    return tuple(notes)
