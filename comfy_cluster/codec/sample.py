"""How small a tensor would become, told by a small part of it. Pure; called by `cluster/`.

How it works. A few bands from all over the tensor are looked at: whole rows where it may be an
8-bit image, since it is the row above that makes a row small. They are compressed by one codec; how
the others compare to it is known well enough (`_LIKE_ZSTD`).
"""

from __future__ import annotations

from collections.abc import Collection
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
_LEVEL_BAND_SIZE = 16 << 10  # levels: 4 bands take zstd half a millisecond
_VALUE_BAND_SIZE = 32 << 10  # bytes: the same
_FIRST_LOOK = 4 << 10  # elements that tell nearly every tensor without levels
# Sizes relative to zstd's, measured on photographs.
_LIKE_ZSTD = {"lz4": 1.35, "zstd": 1.0, "png": 1.05, "webp": 0.83}
_BLOCKS_LIKE_ZSTD = {"lz4": 1.02, "zstd": 1.0}


@dataclass(frozen=True, slots=True)
class Sample:
    """Some of a tensor."""

    is_levels: bool
    """All of it are 8-bit levels, or are to be rounded to them."""
    itemsize: int
    """Bytes of an element of the tensor."""
    bands: list[torch.Tensor]
    """The levels, or the values."""

    def sizes(self, codecs: Collection[str]) -> dict[str, float]:
        """Expected size by codec, in bytes for a byte of the tensor; raw is 1.0.

        Half a millisecond if one of them compresses.
        """
        sizes = {"raw": 1.0, "raw8": 1 / self.itemsize if self.is_levels else 1.0}
        like_zstd = _LIKE_ZSTD if self.is_levels else _BLOCKS_LIKE_ZSTD
        if not like_zstd.keys().isdisjoint(codecs):
            by_zstd = _size_by_zstd(self)
            sizes |= {name: min(1.0, by_zstd * factor) for name, factor in like_zstd.items()}
        return {name: sizes.get(name, 1.0) for name in codecs}


def begins_with_levels(tensor: torch.Tensor) -> bool:
    """Whether a CPU tensor may be an 8-bit image, by its first few thousand elements."""
    if not _may_be_image(tensor):
        return False
    first = tensor[(0,) * (tensor.ndim - 2)]
    rows = max(1, _FIRST_LOOK // max(1, first.shape[1]))
    return exact_levels(copy_of(first[:rows, :_FIRST_LOOK])) is not None


def take_sample(tensor: torch.Tensor, *, is_rounded: bool) -> Sample:
    """Copies some of a tensor that `encode` supports, from any device.

    `is_rounded`: as by precision "uint8".
    """
    bands = _bands(tensor)
    levels = _levels_of(bands, is_rounded=is_rounded) if _may_be_image(tensor) else None
    return Sample(levels is not None, tensor.itemsize, bands if levels is None else levels)


def _may_be_image(tensor: torch.Tensor) -> bool:
    return tensor.dtype in LEVEL_DTYPES and item_layout(tensor.shape) is not None


def _bands(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Contiguous copies, on the CPU, of [rows, row] that lie together, from all over the tensor."""
    layout = item_layout(tensor.shape)
    if layout is None:
        limit = _VALUE_BAND_SIZE // tensor.itemsize
        places = [index / (_BAND_COUNT - 1) for index in range(_BAND_COUNT)]
        return [copy_of(_some_of(tensor, place, limit)) for place in places]
    item_count, height, width, channels = layout
    columns = min(width, max(1, _LEVEL_BAND_SIZE // (2 * channels)))  # two rows at least
    count = min(height, max(2, _LEVEL_BAND_SIZE // (columns * channels)))
    items = _starts(item_count, 1)
    rows = _starts(height, count)
    bands = []
    for number in range(max(len(items), len(rows))):
        item = tensor if tensor.ndim == 2 else tensor[items[number % len(items)]]
        start = rows[number % len(rows)]
        band = copy_of(item[start : start + count, :columns])
        bands.append(band.reshape(count, -1)[:, :_LEVEL_BAND_SIZE])
    return bands


def _some_of(values: torch.Tensor, place: float, limit: int) -> torch.Tensor:
    """Up to `limit` elements, from that place (0.0 to 1.0) of a tensor of any strides."""
    while values.ndim > 1 and values.numel() > limit:
        values = values[round(place * (len(values) - 1))]
    if values.ndim == 1 and len(values) > limit:
        start = round(place * (len(values) - limit))
        values = values[start : start + limit]
    return values


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


def _size_by_zstd(sample: Sample) -> float:
    if not blosc.is_available():
        return 0.5 / sample.itemsize if sample.is_levels else 1.0
    size = sum(band.numel() for band in sample.bands) * sample.itemsize
    if sample.is_levels:
        encode = IMAGE_CODECS["zstd"].encode
        return sum(len(encode(band.numpy()[..., None])) for band in sample.bands) / size
    compressed = [
        blosc.compress(
            band.reshape(-1).view(torch.uint8).numpy().data, "zstd", itemsize=band.itemsize
        )
        for band in sample.bands
    ]
    return sum(map(len, compressed)) / max(size, 1)
