"""Rows of 8-bit levels in few bits: a lossless form for photographs at the speed of memory.

How it works. Each level is foretold, and what is packed is the difference, modulo 256. The
predictor is the level above ("up", as in PNG), or that and the one to the left and the one above
that (left + above - above left: "gradient"), whichever is smaller by a look at every seventh row.
Differences are made unsigned so that small ones have few bits (0, -1, 1, -2, ... become 0, 1, 2,
3, ...: zigzag), and 16 in a row take as many bits each as the largest of them: bit packing with a
frame of reference, as in Lemire and Boytsov, "Decoding billions of integers per second" (2015).

    0       predictor: 0 up, 1 gradient
    1       bits of each block of 16, 0 to 8, four bits each, the first one in the lower half
    then    the blocks, 2 * bits bytes each: of each eight levels the lowest bits first

Above the first row of an image, and to the left of each row, everything is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .levels import octets_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

Octets = npt.NDArray[np.uint8]

_BLOCK = 16
_SAMPLED_ROWS = 7  # images like to repeat by powers of two
_UP, _GRADIENT = 0, 1
_BIT_LENGTHS = np.array([value.bit_length() for value in range(256)], np.uint8)


def pack_rows(rows: Buffer, row_size: int, *, stride: int, has_above: bool) -> bytearray:
    lines, above = _lines_of(octets_of(rows), row_size, stride=stride, has_above=has_above)
    by_up = lines - np.concatenate((above, lines[:-1]))
    by_gradient = by_up.copy()
    by_gradient[:, stride:] -= by_up[:, :-stride]
    costs = [_cost(_zigzag(each[::_SAMPLED_ROWS])) for each in (by_up, by_gradient)]
    # The gradient takes longer to undo: it has to be worth it.
    predictor = _GRADIENT if costs[_GRADIENT] * 33 < costs[_UP] * 32 else _UP
    differences = _zigzag(by_gradient if predictor == _GRADIENT else by_up)
    blocks = _blocks_of(differences.reshape(1, -1))
    widths = _widths_of(blocks)
    head = bytearray((predictor,)) + _nibbles(widths)
    ends = np.cumsum(2 * widths.astype(np.int64))
    data = np.zeros(int(ends[-1]), np.uint8)
    for width in range(1, 9):
        chosen = widths == width
        bits = np.unpackbits(blocks[chosen][..., None], axis=2, bitorder="little")[..., :width]
        packed = np.packbits(bits.reshape(-1, 2, 8 * width), axis=2, bitorder="little")
        data[_places(ends[chosen], width)] = packed.reshape(-1, 2 * width)
    return head + data.tobytes()


def unpack_rows(
    packed: Buffer, rows: Buffer, row_size: int, *, stride: int, has_above: bool
) -> bool:
    target = octets_of(rows, writable=True)
    lines, above = _lines_of(target, row_size, stride=stride, has_above=has_above)
    given = octets_of(packed)
    count = -(-lines.size // _BLOCK)
    head = given[: 1 + (count + 1) // 2]
    if len(head) < 1 + (count + 1) // 2 or head[0] > _GRADIENT:
        return False
    nibbles = np.stack((head[1:] & 15, head[1:] >> 4), axis=1).reshape(-1)
    widths = nibbles[:count]
    ends = np.cumsum(2 * widths.astype(np.int64))
    if widths.max() > 8 or nibbles[count:].any() or len(given) != len(head) + int(ends[-1]):
        return False
    data = given[len(head) :]
    blocks = np.zeros((count, _BLOCK), np.uint8)
    for width in range(1, 9):
        chosen = widths == width
        octets = data[_places(ends[chosen], width)].reshape(-1, 2, width)
        bits = np.unpackbits(octets, axis=2, bitorder="little").reshape(-1, _BLOCK, width)
        blocks[chosen] = np.packbits(bits, axis=2, bitorder="little")[..., 0]
    differences = blocks.reshape(-1)[: lines.size].reshape(lines.shape)
    differences = (differences >> 1) ^ np.negative(differences & 1)
    if head[0] == _GRADIENT:
        for start in range(stride):
            column = differences[:, start::stride]
            np.cumsum(column, axis=1, dtype=np.uint8, out=column)
    differences[0] += above[0]
    np.cumsum(differences, axis=0, dtype=np.uint8, out=lines)
    return True


def _lines_of(
    octets: Octets, row_size: int, *, stride: int, has_above: bool
) -> tuple[Octets, Octets]:
    """The rows, and the one above them."""
    if row_size < 1 or len(octets) % row_size or len(octets) // row_size <= has_above:
        raise ValueError(f"{len(octets)} bytes are no whole rows of {row_size}")
    if stride < 1 or row_size % stride:
        raise ValueError(f"a pixel of {stride} bytes in a row of {row_size}")
    lines = octets.reshape(-1, row_size)
    return (lines[1:], lines[:1]) if has_above else (lines, np.zeros((1, row_size), np.uint8))


def _zigzag(differences: Octets) -> Octets:
    unsigned: Octets = (differences << 1) ^ np.negative(differences >> 7)
    return unsigned


def _cost(differences: Octets) -> int:
    """Bits for the rows, each by itself."""
    return int(_widths_of(_blocks_of(differences)).sum(dtype=np.int64))


def _blocks_of(lines: Octets) -> Octets:
    """[block, 16]: of each line, the last one filled up with 0."""
    missing = -lines.shape[1] % _BLOCK
    return np.pad(lines, ((0, 0), (0, missing))).reshape(-1, _BLOCK)


def _widths_of(blocks: Octets) -> Octets:
    return _BIT_LENGTHS[np.bitwise_or.reduce(blocks, axis=1)]


def _nibbles(widths: Octets) -> bytes:
    even = np.pad(widths, (0, len(widths) % 2))
    return (even[::2] | even[1::2] << 4).tobytes()


def _places(ends: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """Indices of the bytes of blocks of that width that end there."""
    return ends[:, None] + np.arange(-2 * width, 0)
