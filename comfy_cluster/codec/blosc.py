"""Bytes smaller and back by Blosc: bit shuffle, then LZ4 or Zstandard. Optional: `is_available`.

Bits of the same weight come to lie together, which is where neighbouring pixels and floats are
alike. Used by the codecs "lz4" and "zstd". numcodecs works without the GIL on all threads but the
main one.

What comes from a peer is checked before the library sees it: that one believes the size which the
data declare of themselves, also where fewer bytes are there.
"""

from __future__ import annotations

import struct
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from comfy_cluster.errors import CorruptPayload

if TYPE_CHECKING:
    from typing_extensions import Buffer

COMPRESSORS = ("lz4", "zstd")
# Level 1: of Zstandard the fastest, and 5 % larger than level 2; LZ4 gains nothing by others.
_LEVEL = 1
_BIT_SHUFFLE = 2
# Format version, compressor's version, flags, item size, size, block size, compressed size:
# https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
_HEADER = struct.Struct("<BBBBIII")
HEADER_SIZE = _HEADER.size
_FORMAT_VERSION = 2
_COMPRESSOR_CODES = {1: "lz4", 4: "zstd"}  # in the three upper bits of the flags
# The library makes them of 16 KiB or more. Each costs it 5 us, however small, in one long call.
_SMALLEST_BLOCK = 4 << 10  # bytes, where there are so many
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@cache
def _library() -> ModuleType | None:
    try:
        import numcodecs
    except (ImportError, OSError):  # OSError: a system that grants it no semaphore
        return None
    library: ModuleType = numcodecs
    return library


def is_available() -> bool:
    """Whether numcodecs is installed and works here."""
    return _library() is not None


def compress(data: Buffer, compressor: str, *, itemsize: int) -> bytes:
    """`data`, of less than 2 GiB, compressed; a header larger where it does not compress.

    `itemsize`: 1, 2, 4 or 8, of which the size of `data` is a multiple.
    """
    library = _library()
    assert library is not None
    words = np.frombuffer(memoryview(data).cast("B"), np.uint8).view(_WORDS[itemsize])
    compressed: bytes = library.Blosc(compressor, _LEVEL, _BIT_SHUFFLE, 0).encode(words)
    return compressed


def check(data: memoryview, size: int) -> None:
    """`CorruptPayload` unless `data` declare themselves to be `size` bytes that we would make."""
    if len(data) < HEADER_SIZE:
        raise CorruptPayload(f"corrupt payload: {len(data)} bytes of Blosc data")
    fields = _HEADER.unpack_from(data)
    version, _, flags, itemsize, declared, block_size, compressed_size = fields
    if compressed_size != len(data):
        raise CorruptPayload(
            f"corrupt payload: Blosc data of {compressed_size} bytes, {len(data)} are there"
        )
    if declared != size:
        raise CorruptPayload(f"corrupt payload: Blosc data hold {declared} bytes, {size} expected")
    if (
        version != _FORMAT_VERSION
        or flags >> 5 not in _COMPRESSOR_CODES
        or itemsize not in _WORDS
        or not min(size, _SMALLEST_BLOCK) <= block_size <= size
        or block_size % itemsize  # it would leave the rest of each block as it finds it
        or compressed_size > size + HEADER_SIZE
    ):
        raise CorruptPayload(f"corrupt payload: Blosc header {data[:HEADER_SIZE].hex()}")


def compressor_of(data: memoryview) -> str:
    """Which of `COMPRESSORS` made data that `check` would let pass; `CorruptPayload` if none."""
    name = _COMPRESSOR_CODES.get(data[2] >> 5) if len(data) >= HEADER_SIZE else None
    if name is None:
        raise CorruptPayload("corrupt payload: the Blosc data are of no compressor that we use")
    return name


def decompress(data: memoryview, target: npt.NDArray[np.uint8]) -> None:
    """Fills `target` from data that `check` let pass with its size; `CorruptPayload` if broken."""
    library = _library()
    assert library is not None
    try:
        library.Blosc().decode(data, target)
    except (RuntimeError, ValueError) as error:
        raise CorruptPayload(f"corrupt payload: Blosc data: {error}") from None
