"""How small a tensor would become, told by a small part of it. Pure; called by `cluster/`.

How it works. A few bands from all over the tensor are looked at: whole rows where it may be an
8-bit image, since it is the row above that makes a row small. They are compressed by one codec; how
the others compare to it is known well enough (`_LIKE_ZSTD`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from comfy_cluster.codec import blosc
from comfy_cluster.codec.image_codecs import IMAGE_CODECS
from comfy_cluster.codec.levels import (
    FLOAT_DTYPES,
    LEVEL_DTYPES,
    exact_levels,
    item_layout,
    rounded_levels,
)
from comfy_cluster.codec.pieces import copy_of

_BAND_COUNT = 4
_LEVEL_BAND_SIZE = 32 << 10  # levels: 4 bands take zstd 0.3 ms
_VALUE_BAND_SIZE = 64 << 10  # bytes: the same
_FIRST_LOOK = 4 << 10  # elements that tell nearly every tensor without levels
# Sizes relative to zstd's, measured on photographs.
_LIKE_ZSTD = {"lz4": 1.35, "zstd": 1.0, "png": 1.05, "webp": 0.83}
_BLOCKS_LIKE_ZSTD = {"lz4": 1.02, "zstd": 1.0}


@dataclass(frozen=True, slots=True)
class Sample:
    """What a look at a tensor found."""

    is_levels: bool
    """All of what was looked at are 8-bit levels, or are to be rounded to them."""
    sizes: Mapping[str, float]
    """Expected size by codec, in bytes for a byte of the tensor; raw is 1.0."""


def begins_with_levels(tensor: torch.Tensor) -> bool:
    """Whether a CPU tensor may be an 8-bit image, by its first elements: in a few microseconds."""
    if not _may_be_image(tensor):
        return False
    first = tensor[(0,) * (tensor.ndim - 2)]
    rows = max(1, _FIRST_LOOK // max(1, first.shape[1]))
    return exact_levels(first[:rows, :_FIRST_LOOK].contiguous()) is not None


def take_sample(tensor: torch.Tensor, codecs: Collection[str], *, is_rounded: bool) -> Sample:
    """Looks at a tensor that `encode` supports, on any device.

    `codecs` are those to judge; `is_rounded`: as by precision "uint8".
    """
    bands = _bands(tensor)
    levels = _levels_of(bands, is_rounded=is_rounded) if _may_be_image(tensor) else None
    if levels is not None:
        return Sample(True, _level_sizes(levels, tensor.itemsize, codecs))
    return Sample(False, _value_sizes(bands, codecs))


def _may_be_image(tensor: torch.Tensor) -> bool:
    return tensor.dtype in LEVEL_DTYPES and item_layout(tensor.shape) is not None


def _bands(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Contiguous copies, on the CPU, of [rows, row] that lie together, from all over the tensor."""
    layout = item_layout(tensor.shape)
    if layout is None:  # no rows: any size does
        count = min(_VALUE_BAND_SIZE // tensor.itemsize, tensor.numel())
        flat = tensor.reshape(-1)
        return [copy_of(flat[start : start + count]) for start in _starts(flat.numel(), count)]
    item_count, height, width, channels = layout
    count = min(height, max(2, _LEVEL_BAND_SIZE // (width * channels)))
    items = _starts(item_count, 1)
    rows = _starts(height, count)
    bands = []
    for number in range(max(len(items), len(rows))):
        item = tensor if tensor.ndim == 2 else tensor[items[number % len(items)]]
        start = rows[number % len(rows)]
        bands.append(copy_of(item[start : start + count]).reshape(count, width * channels))
    return bands


def _starts(size: int, count: int) -> list[int]:
    """Up to `_BAND_COUNT` first indices of `count` out of `size`, from begin to end."""
    number = min(_BAND_COUNT, size // count)
    if number < 2:
        return [0]
    return [index * (size - count) // (number - 1) for index in range(number)]


def _levels_of(bands: list[torch.Tensor], *, is_rounded: bool) -> list[torch.Tensor] | None:
    levels = []
    for band in bands:
        rounds = is_rounded and band.dtype in FLOAT_DTYPES
        found = rounded_levels(band) if rounds else exact_levels(band)
        if found is None:
            return None
        levels.append(found)
    return levels


def _level_sizes(
    bands: list[torch.Tensor], itemsize: int, codecs: Collection[str]
) -> dict[str, float]:
    size = sum(band.numel() for band in bands) * itemsize
    sizes = {"raw": 1.0, "raw8": 1 / itemsize}
    if blosc.is_available():
        encode = IMAGE_CODECS["zstd"].encode
        by_zstd = sum(len(encode(band.numpy()[..., None])) for band in bands) / size
    else:
        by_zstd = sizes["raw8"] / 2
    sizes |= {name: min(1.0, by_zstd * factor) for name, factor in _LIKE_ZSTD.items()}
    return {name: sizes[name] for name in codecs if name in sizes}


def _value_sizes(bands: list[torch.Tensor], codecs: Collection[str]) -> dict[str, float]:
    sizes = dict.fromkeys(codecs, 1.0)
    octets = [band.reshape(-1)[: _VALUE_BAND_SIZE // band.itemsize] for band in bands]
    size = sum(band.nbytes for band in octets)
    if blosc.is_available() and size:
        compressed = [
            blosc.compress(band.view(torch.uint8).numpy().data, "zstd", itemsize=band.itemsize)
            for band in octets
        ]
        by_zstd = sum(map(len, compressed)) / size
        sizes |= {
            name: min(1.0, by_zstd * factor)
            for name, factor in _BLOCKS_LIKE_ZSTD.items()
            if name in sizes
        }
    return sizes
