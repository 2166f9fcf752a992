"""Any tensor's memory in compressed blocks: the codecs "lz4" and "zstd" for what is no 8-bit image.

How it works. The memory is cut into blocks of `BLOCK_SIZE` bytes, the last one shorter, and each is
one piece of Blosc data. Called through `tensors.py`; knows no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from comfy_cluster.codec import blosc
from comfy_cluster.codec.interruption import PIECE_SIZE, check_interruption
from comfy_cluster.errors import CorruptPayload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BLOCK_SIZE = PIECE_SIZE  # bytes


def encode_blocks(memory: memoryview, compressor: str, *, itemsize: int) -> list[bytes] | None:
    """The blocks of `memory`; None as soon as they are no smaller than it."""
    blocks: list[bytes] = []
    done = compressed = 0
    for start in range(0, len(memory), BLOCK_SIZE):
        check_interruption()
        block = memory[start : start + BLOCK_SIZE]
        blocks.append(blosc.compress(block, compressor, itemsize=itemsize))
        done, compressed = done + len(block), compressed + len(blocks[-1])
        if compressed >= done:
            return None
    return blocks


def check_blocks(blocks: Sequence[memoryview], size: int) -> None:
    """`CorruptPayload` unless `blocks` declare that they hold `size` bytes; allocates nothing."""
    if not blosc.is_available():
        raise CorruptPayload("corrupt payload: it is in Blosc data, which needs numcodecs")
    if len(blocks) != -(-size // BLOCK_SIZE):
        raise CorruptPayload(f"corrupt payload: {len(blocks)} blocks for {size} bytes")
    for index, block in enumerate(blocks):
        blosc.check(block, min(BLOCK_SIZE, size - index * BLOCK_SIZE))


def decode_blocks(blocks: Sequence[memoryview], target: npt.NDArray[np.uint8]) -> None:
    """Fills flat `target` from blocks that `check_blocks` let pass with its size."""
    for index, block in enumerate(blocks):
        check_interruption()
        start = index * BLOCK_SIZE
        blosc.decompress(block, target[start : start + BLOCK_SIZE])
