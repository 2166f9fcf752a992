"""8-bit images in few bits by the engine's bit packing: the image codec "bitpack".

Photographs come to about the size that zstd makes of them, in a third of its time (decisions.md).
Any number of channels. The form of packed rows is told in `_fastpath_py/bitpack.py`.

    0   16  header as of the other level files (`level_files.py`), with b"CCL2"
    16      for each band of `band_rows` rows, the last one shorter: size (4 bytes), packed rows

Called through `tensors.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from comfy_cluster import fastpath
from comfy_cluster.codec.interruption import PIECE_SIZE, check_interruption
from comfy_cluster.codec.level_files import (
    band_head,
    band_rows,
    bands_of,
    check_header,
    file_header,
)
from comfy_cluster.errors import CorruptPayload

if TYPE_CHECKING:
    from comfy_cluster.codec.levels import Levels

SIGNATURE = b"CCL2"


def fits_packed(shape: tuple[int, int, int]) -> bool:
    """Whether rows of images of that shape are of a size that is quickly packed by any engine."""
    return shape[1] * shape[2] <= PIECE_SIZE


def encode_packed(levels: Levels) -> bytes:
    """A CCL2 file of levels [H, W, C]."""
    height, width, channels = levels.shape
    rows = np.ascontiguousarray(levels).reshape(height, width * channels)
    parts: list[bytes | bytearray] = [file_header(SIGNATURE, levels)]
    count = band_rows(rows.shape[1])
    for start in range(0, height, count):
        check_interruption()
        band = rows[max(start - 1, 0) : start + count]
        packed = fastpath.pack_rows(
            band.data.cast("B"), rows.shape[1], stride=channels, has_above=start > 0
        )
        parts += (band_head(len(packed)), packed)
    return b"".join(parts)


def packed_size(rows: Levels, stride: int) -> int:
    """Bytes that rows [H, row] but the first one come to, as part of a larger image."""
    memory = np.ascontiguousarray(rows).data.cast("B")
    return len(fastpath.pack_rows(memory, rows.shape[1], stride=stride, has_above=True))


def check_packed(data: memoryview, shape: tuple[int, int, int]) -> None:
    """`CorruptPayload` unless header and band sizes fit that shape; allocates nothing."""
    check_header(data, shape)
    if not fits_packed(shape):
        raise CorruptPayload(
            f"corrupt payload: the rows of {list(shape)} are too large to be packed"
        )
    for _ in bands_of(data, shape):
        pass


def decode_packed(data: memoryview, shape: tuple[int, int, int]) -> Levels:
    """Levels [H, W, C] of a file that `check_packed` let pass; `CorruptPayload` if broken."""
    height, width, channels = shape
    row_size = width * channels
    levels: Levels = np.empty((height, row_size), np.uint8)
    start = 0
    for count, band in bands_of(data, shape):
        check_interruption()
        rows = levels[max(start - 1, 0) : start + count]
        if not fastpath.unpack_rows(
            band, rows.data.cast("B"), row_size, stride=channels, has_above=start > 0
        ):
            raise CorruptPayload(f"corrupt payload: the band of row {start} is no packed rows")
        start += count
    return levels.reshape(shape)
