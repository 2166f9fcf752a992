"""8-bit images as lossless WebP files and back: the image codec "webp", for slow links.

Only files of the simple lossless form are written and read (RIFF with one VP8L chunk): RGB or RGBA,
no metadata, no animation. https://developers.google.com/speed/webp/docs/riff_container
The plugin's class is used, not `PIL.Image.open`, for the reason in `png.py`.
Called through `tensors.py`.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, WebPImagePlugin, features

from comfy_cluster.errors import CorruptPayload

if TYPE_CHECKING:
    from comfy_cluster.codec.levels import Levels

SIGNATURE = b"RIFF"
_MODES = {3: "RGB", 4: "RGBA"}  # channels -> Pillow mode
_LARGEST_SIDE = 16_383  # pixels: the header has 14 bits for each
# Pixels of one file: libwebp cannot be interrupted, and takes a second for 16 million.
_LARGEST_IMAGE = 1 << 24
# RIFF, size of what follows, WEBP, VP8L, size of the chunk, 0x2F, dimensions and flags
_HEADER = struct.Struct("<4sI4s4sIBI")
_RIFF_HEAD = 8  # bytes that the RIFF size does not count
_CHUNK_START = 20
_LOSSLESS_MARK = 0x2F


_ERRORS = (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError)


class _Reader(io.BytesIO):
    """Reads no further than to the dimensions, when so many bytes are asked for.

    Pillow 13 compares dimensions in the first 30 bytes with MAX_IMAGE_PIXELS, which is
    for the whole process to set. Ours are checked already.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, _CHUNK_START))


def is_available() -> bool:
    """Whether Pillow was built with WebP."""
    return features.check("webp") is True


def fits_webp(shape: tuple[int, int, int]) -> bool:
    """Whether a file can hold an image [H, W, C], and in a bearable time."""
    height, width, channels = shape
    return (
        channels in _MODES
        and max(height, width) <= _LARGEST_SIDE
        and height * width <= _LARGEST_IMAGE
    )


def encode_webp(levels: Levels) -> bytes:
    """A WebP file of levels [H, W, C] that `fits_webp`."""
    image = Image.fromarray(levels, _MODES[levels.shape[2]])
    file = io.BytesIO()
    # quality 0 and method 0: the fastest; exact: colours under transparent pixels stay.
    image.save(file, "WEBP", lossless=True, quality=0, method=0, exact=True)
    return file.getvalue()


def check_webp(data: memoryview, shape: tuple[int, int, int]) -> None:
    """`CorruptPayload` unless the header declares a simple lossless image of that shape."""
    if len(data) < _HEADER.size or not is_available() or not fits_webp(shape):
        raise CorruptPayload(f"corrupt payload: {len(data)} bytes of WebP for {list(shape)}")
    riff, size, form, kind, chunk_size, mark, packed = _HEADER.unpack_from(data)
    if (riff, form, kind, mark) != (SIGNATURE, b"WEBP", b"VP8L", _LOSSLESS_MARK):
        raise CorruptPayload("corrupt payload: the WebP file is not of the simple lossless form")
    padded = chunk_size + chunk_size % 2
    if size + _RIFF_HEAD != len(data) or _CHUNK_START + padded != len(data):
        raise CorruptPayload(f"corrupt payload: the WebP file has {len(data)} bytes, not its own")
    width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    has_alpha = bool(packed >> 28 & 1)
    if (height, width) != shape[:2] or packed >> 29 or (has_alpha and shape[2] != 4):
        raise CorruptPayload(
            f"corrupt payload: the WebP image is {height}x{width}{', alpha' if has_alpha else ''}, "
            f"the envelope asks for {list(shape)}"
        )


def decode_webp(data: memoryview, shape: tuple[int, int, int]) -> Levels:
    """Levels [H, W, C] of a file that `check_webp` let pass; `CorruptPayload` if broken."""
    mode = _MODES[shape[2]]
    try:
        with WebPImagePlugin.WebPImageFile(_Reader(data)) as image:
            # An image without a transparent pixel has no alpha in its file.
            levels = np.asarray(image if image.mode == mode else image.convert(mode))
    except _ERRORS as error:
        raise CorruptPayload(f"corrupt payload: WebP image data: {error}") from None
    if levels.shape != shape:
        raise CorruptPayload(f"corrupt payload: the WebP image is {list(levels.shape)}")
    return levels
