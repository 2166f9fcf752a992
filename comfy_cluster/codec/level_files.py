"""8-bit images in a form of this project's own: the image codecs "raw8", "lz4" and "zstd".

How it works. A file is a header and then either the levels as they are, or bands of rows, each one
piece of Blosc data. In bands the "up" filter of PNG comes first: each row is the difference to the
row above it, also across bands. That and the bit shuffle cost a few milliseconds for a megapixel,
and come within 15 % of the size of a PNG file (decisions.md). Any number of channels. Header and
bands are those of "bitpack" too (`bitpack.py`).

    0   4   b"CCL0": levels; b"CCL1": bands
    4   4   height, big-endian, as all numbers here
    8   4   width
    12  4   channels
    16      CCL0: height * width * channels bytes
            CCL1: for each band of `band_rows` rows, the last one shorter: size (4 bytes), data

Called through `tensors.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from comfy_cluster import fastpath
from comfy_cluster.codec import blosc
from comfy_cluster.codec.interruption import PIECE_SIZE, check_interruption
from comfy_cluster.errors import CorruptPayload

if TYPE_CHECKING:
    from comfy_cluster.codec.levels import Levels

PLAIN_SIGNATURE = b"CCL0"
BANDS_SIGNATURE = b"CCL1"
HEADER_SIZE = 16
_DIMENSIONS = struct.Struct(">III")
_BAND_HEAD = struct.Struct(">I")
# A band is decompressed in one call, which nothing interrupts: 0.5 GB/s at the least.
LARGEST_ROW = 64 << 20  # bytes


def band_rows(row_size: int) -> int:
    """Rows of one band: as many as `PIECE_SIZE` holds, at least one."""
    return max(1, PIECE_SIZE // row_size)


def fits_bands(shape: tuple[int, int, int]) -> bool:
    """Whether rows of images of that shape are of a size for bands."""
    return shape[1] * shape[2] <= LARGEST_ROW


def encode_plain(levels: Levels) -> bytes:
    """A CCL0 file of levels [H, W, C]."""
    return b"".join((file_header(PLAIN_SIGNATURE, levels), np.ascontiguousarray(levels).data))


def encode_bands(levels: Levels, compressor: str) -> bytes:
    """A CCL1 file of levels [H, W, C]."""
    height, width, channels = levels.shape
    rows = levels.reshape(height, width * channels)
    parts = [file_header(BANDS_SIGNATURE, levels)]
    count = band_rows(rows.shape[1])
    for start in range(0, height, count):
        check_interruption()
        band = rows[start : start + count]
        filtered = up_filtered(band)
        if start:
            filtered[0] -= rows[start - 1]
        data = blosc.compress(filtered.data.cast("B"), compressor, itemsize=1)
        parts += (band_head(len(data)), data)
    return b"".join(parts)


def up_filtered(rows: Levels) -> Levels:
    """Each row [..., H, row] as its difference to the one above; the first ones as they are."""
    filtered = np.empty_like(rows)
    filtered[..., 0, :] = rows[..., 0, :]
    np.subtract(rows[..., 1:, :], rows[..., :-1, :], out=filtered[..., 1:, :])
    return filtered


def file_header(signature: bytes, levels: Levels) -> bytes:
    """Of a file of levels [H, W, C]."""
    return signature + _DIMENSIONS.pack(*levels.shape)


def band_head(size: int) -> bytes:
    """What precedes a band of so many bytes."""
    return _BAND_HEAD.pack(size)


def check_plain(data: memoryview, shape: tuple[int, int, int]) -> None:
    """`CorruptPayload` unless `data` are the header and levels of an image of that shape."""
    check_header(data, shape)
    height, width, channels = shape
    if len(data) != HEADER_SIZE + height * width * channels:
        raise CorruptPayload(
            f"corrupt payload: {len(data) - HEADER_SIZE} bytes of levels for shape {list(shape)}"
        )


def check_bands(data: memoryview, shape: tuple[int, int, int]) -> None:
    """`CorruptPayload` unless header and band headers fit that shape; allocates nothing."""
    if not blosc.is_available():
        raise CorruptPayload("corrupt payload: it is in Blosc data, which needs numcodecs")
    check_header(data, shape)
    if not fits_bands(shape):
        raise CorruptPayload(f"corrupt payload: the rows of {list(shape)} are too large for bands")
    for rows, band in bands_of(data, shape):
        blosc.check(band, rows * shape[1] * shape[2])


def check_header(data: memoryview, shape: tuple[int, int, int]) -> None:
    """`CorruptPayload` unless the header declares that shape."""
    if len(data) < HEADER_SIZE:
        raise CorruptPayload(f"corrupt payload: an image file of {len(data)} bytes")
    declared = _DIMENSIONS.unpack_from(data, 4)
    if declared != shape:
        raise CorruptPayload(
            f"corrupt payload: the image is {list(declared)}, the envelope asks for {list(shape)}"
        )


def bands_of(data: memoryview, shape: tuple[int, int, int]) -> Iterator[tuple[int, memoryview]]:
    """Row count and data of each band; `CorruptPayload` where they do not end with the file."""
    height, width, channels = shape
    count = band_rows(width * channels)
    offset = HEADER_SIZE
    for start in range(0, height, count):
        end = offset + _BAND_HEAD.size
        size = _BAND_HEAD.unpack_from(data, offset)[0] if end <= len(data) else 0
        offset = end + size
        if not size or offset > len(data):
            raise CorruptPayload(f"corrupt payload: the image ends in the band of row {start}")
        yield min(count, height - start), data[end:offset]
    if offset != len(data):
        raise CorruptPayload(f"corrupt payload: {len(data) - offset} bytes after the last band")


def compressor_of_bands(file: memoryview) -> str:
    """Which of `blosc.COMPRESSORS` made a CCL1 file; `CorruptPayload` if none."""
    return blosc.compressor_of(file[HEADER_SIZE + _BAND_HEAD.size :])


def decode_plain(data: memoryview, shape: tuple[int, int, int]) -> Levels:
    """Levels [H, W, C]: a view of a file that `check_plain` let pass."""
    return np.frombuffer(data[HEADER_SIZE:], np.uint8).reshape(shape)


def decode_bands(data: memoryview, shape: tuple[int, int, int]) -> Levels:
    """Levels [H, W, C] of a file that `check_bands` let pass; `CorruptPayload` if broken."""
    height, width, channels = shape
    levels: Levels = np.empty((height, width * channels), np.uint8)
    start = 0
    for count, band in bands_of(data, shape):
        check_interruption()
        rows = levels[start : start + count]
        blosc.decompress(band, rows)
        filtered = levels[max(start - 1, 0) : start + count]  # from the last row that is done
        fastpath.undo_up_filter(filtered.data.cast("B"), width * channels)
        start += count
    return levels.reshape(shape)
