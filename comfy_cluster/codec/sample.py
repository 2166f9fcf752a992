"""How small a tensor would become, told by a small part of it. Pure; called by `cluster/`.

How it works. A few bands from all over the tensor are looked at: whole rows where it may be an
8-bit image, since it is the row above that makes a row small. They are compressed by one codec; how
the others compare to it is known well enough (`_LIKE_ZSTD`), but for bit packing, which is tried.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from comfy_cluster.codec import blosc
from comfy_cluster.codec.bitpack import packed_size
from comfy_cluster.codec.interruption import check_interruption
from comfy_cluster.codec.level_files import up_filtered
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
    stride: int
    """Values of a pixel in a band."""
    bands: torch.Tensor
    """The levels [band, row, levels], or the values [band, ...]."""

    def sizes(self, codecs: Collection[str]) -> dict[str, float]:
        """Expected size by codec, in bytes for a byte of the tensor; raw is 1.0.

        Half a millisecond if one of them compresses.
        """
        sizes = {"raw": 1.0, "raw8": 1 / self.itemsize if self.is_levels else 1.0}
        if "bitpack" in codecs and self.is_levels:
            sizes["bitpack"] = _size_by_bitpack(self)
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
    levels = None
    if _may_be_image(tensor):
        rounds = is_rounded and tensor.dtype in FLOAT_DTYPES
        levels = rounded_levels(bands) if rounds else exact_levels(bands)
    layout = item_layout(tensor.shape)
    return Sample(
        levels is not None,
        tensor.itemsize,
        1 if layout is None else min(layout[3], _LEVEL_BAND_SIZE),
        bands if levels is None else levels,
    )


def _may_be_image(tensor: torch.Tensor) -> bool:
    return tensor.dtype in LEVEL_DTYPES and item_layout(tensor.shape) is not None


def _bands(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, on the CPU: [band, row, values], rows that lie together, from all over."""
    layout = item_layout(tensor.shape)
    if layout is None:
        limit = _VALUE_BAND_SIZE // tensor.itemsize
        places = [index / (_BAND_COUNT - 1) for index in range(_BAND_COUNT)]
        return _stacked([_some_of(tensor, place, limit) for place in places])
    item_count, height, width, channels = layout
    columns = min(width, max(1, _LEVEL_BAND_SIZE // (2 * channels)))  # two rows at least
    count = min(height, max(2, _LEVEL_BAND_SIZE // (columns * channels)))
    items = _starts(item_count, 1)
    rows = _starts(height, count)
    bands = []
    for number in range(max(len(items), len(rows))):
        item = tensor if tensor.ndim == 2 else tensor[items[number % len(items)]]
        start = rows[number % len(rows)]
        band = item[start : start + count, :columns]
        bands.append(band if band.ndim == 2 else band[..., :_LEVEL_BAND_SIZE])
    return _stacked(bands).reshape(len(bands), count, -1)


def _stacked(bands: Sequence[torch.Tensor]) -> torch.Tensor:
    """Copies of bands of one shape."""
    first = bands[0]
    target = torch.empty((len(bands), *first.shape), dtype=first.dtype, device="cpu")
    for band, place in zip(bands, target, strict=True):
        check_interruption()
        place.copy_(band.detach())
    return target


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


def _size_by_bitpack(sample: Sample) -> float:
    bands = sample.bands.numpy()
    if bands.shape[1] == 1:  # each row needs one above it
        return 1.0
    size = sum(packed_size(band, sample.stride) for band in bands)
    return min(1.0, size / (bands[:, 1:].size * sample.itemsize))


def _size_by_zstd(sample: Sample) -> float:
    if not blosc.is_available():
        return 0.5 / sample.itemsize if sample.is_levels else 1.0
    if sample.is_levels:
        data, itemsize = up_filtered(sample.bands.numpy()), 1
    else:
        data, itemsize = sample.bands.reshape(-1).view(torch.uint8).numpy(), sample.itemsize
    compressed = blosc.compress(data.data.cast("B"), "zstd", itemsize=itemsize)
    return len(compressed) / max(sample.bands.numel() * sample.itemsize, 1)
