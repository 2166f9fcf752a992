"""8-bit images as PNG files and back: the image codec "png". Called through `tensors.py`.

It writes and reads only the chunks IHDR, IDAT and IEND, 8 bits a channel, not interlaced: gray, RGB
or RGBA. Any other chunk is refused (compressed text and colour profiles are how small files
become large ones), and so are dimensions other than those that the envelope announced.

The file is taken apart here, not by `PIL.Image.open`: that one obeys process-wide switches
(MAX_IMAGE_PIXELS, LOAD_TRUNCATED_IMAGES) which ComfyUI and other node packs change. Pillow undoes
the filters and the compression, without the GIL, into memory of the announced size.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from comfy_cluster.codec.interruption import PIECE_SIZE, check_interruption
from comfy_cluster.errors import CorruptPayload

if TYPE_CHECKING:
    from comfy_cluster.codec.levels import Levels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# zlib level 1 and the "up" filter for every row: on photographs twice as fast as Pillow's choice of
# a filter for each row at level 1, for files 1 % larger (docs/decisions.md).
_COMPRESSION_LEVEL = 1
_UP_FILTER = 2
_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # channels -> PNG colour type
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow mode
_HEADER = struct.Struct(">IIBBBBB")  # IHDR
_CHUNK_HEAD = struct.Struct(">I4s")
_CHUNK_OVERHEAD = 12  # bytes: size, type, CRC
# What may come after what; b"" is the start of the file.
_FOLLOWERS = {b"": (b"IHDR",), b"IHDR": (b"IDAT",), b"IDAT": (b"IDAT", b"IEND")}
_MAX_INFLATION = 1032  # deflate: at most 258 bytes for two bits


def fits_png(shape: tuple[int, int, int]) -> bool:
    """Whether there is a pixel format for an image [H, W, C]."""
    return shape[2] in _COLOR_TYPES


def encode_png(levels: Levels) -> bytes:
    """A PNG file of levels [H, W, C], C in 1, 3, 4."""
    height, width, channels = levels.shape
    rows = levels.reshape(height, width * channels)
    compressor = zlib.compressobj(_COMPRESSION_LEVEL)
    compressed = [compressor.compress(piece) for piece in _filtered_pieces(rows)]
    compressed.append(compressor.flush())
    header = _HEADER.pack(width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    return b"".join(
        [
            *(SIGNATURE, _pack_chunk(b"IHDR", header)),
            *(_pack_chunk(b"IDAT", piece) for piece in compressed if piece),
            _pack_chunk(b"IEND", b""),
        ]
    )


def _filtered_pieces(rows: Levels) -> Iterator[memoryview]:
    """The filtered rows, so many at a time as fit into a piece, or parts of one."""
    height, size = rows.shape
    count = max(1, PIECE_SIZE // (1 + size))
    for start in range(0, height, count):
        band = rows[start : start + count]
        filtered = np.empty((len(band), 1 + size), dtype=np.uint8)
        filtered[:, 0] = _UP_FILTER
        filtered[0, 1:] = band[0] - rows[start - 1] if start else band[0]
        np.subtract(band[1:], band[:-1], out=filtered[1:, 1:])
        octets = filtered.reshape(-1).data
        for first in range(0, len(octets), PIECE_SIZE):
            check_interruption()
            yield octets[first : first + PIECE_SIZE]


def _pack_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join([_CHUNK_HEAD.pack(len(data), kind), data, checksum.to_bytes(4, "big")])


def check_png(data: memoryview, shape: tuple[int, int, int]) -> None:
    """Check all that the file declares, before it is decoded: [H, W, C] must be `shape`.

    Allocates nothing. Raises `CorruptPayload` for other dimensions, another pixel format, other
    chunks than ours, a wrong checksum, and for a file too small to hold such an image.
    """
    if not fits_png(shape):
        raise CorruptPayload(f"corrupt payload: PNG holds no image of shape {list(shape)}")
    height, width, channels = shape
    expected = (width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    compressed_size = 0
    previous = b""
    for kind, content, checksum in _chunks(data):
        if kind not in _FOLLOWERS.get(previous, ()):
            raise CorruptPayload(f"corrupt payload: PNG chunk {kind!r} after {previous!r}")
        if zlib.crc32(content, zlib.crc32(kind)) != checksum:
            raise CorruptPayload(f"corrupt payload: PNG chunk {kind!r} has a wrong checksum")
        if kind == b"IHDR":
            _check_header(content, expected)
        elif kind == b"IDAT":
            compressed_size += len(content)
        previous = kind
    if previous != b"IEND":
        raise CorruptPayload("corrupt payload: PNG has no IEND")
    if height * (1 + width * channels) > _MAX_INFLATION * compressed_size:
        raise CorruptPayload(
            f"corrupt payload: {compressed_size} bytes cannot hold a PNG image of shape {shape}"
        )


def _check_header(content: memoryview, expected: tuple[int, ...]) -> None:
    if len(content) != _HEADER.size:
        raise CorruptPayload(f"corrupt payload: PNG IHDR of {len(content)} bytes")
    if (declared := _HEADER.unpack(content)) != expected:
        raise CorruptPayload(
            f"corrupt payload: PNG header is {declared}, the envelope asks for {expected} "
            "(width, height, depth, colour type, compression, filter, interlace)"
        )


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview, int]]:
    """Type, content and checksum of each chunk; a generator, for a file may hold millions."""
    if data[: len(SIGNATURE)] != SIGNATURE:
        raise CorruptPayload("corrupt payload: image is not a PNG file")
    offset = len(SIGNATURE)
    while offset < len(data):
        if len(data) - offset < _CHUNK_OVERHEAD:
            raise CorruptPayload("corrupt payload: PNG ends inside a chunk")
        size, kind = _CHUNK_HEAD.unpack_from(data, offset)
        begin = offset + _CHUNK_HEAD.size
        offset = begin + size + 4
        if offset > len(data):
            raise CorruptPayload(f"corrupt payload: PNG ends inside chunk {kind!r}")
        yield kind, data[begin : begin + size], int.from_bytes(data[offset - 4 : offset], "big")


def decode_png(data: memoryview, shape: tuple[int, int, int]) -> Levels:
    """The levels [H, W, C] of a file that `check_png` let pass; `CorruptPayload` if broken."""
    height, width, channels = shape
    compressed = bytearray()
    for kind, content, _ in _chunks(data):
        if kind == b"IDAT":
            compressed += content
    mode = _MODES[channels]
    try:
        image = Image.frombytes(mode, (width, height), compressed, "zip", mode, 0)
    except (ValueError, OSError) as error:
        raise CorruptPayload(f"corrupt payload: PNG image data: {error}") from None
    return np.asarray(image).reshape(shape)
