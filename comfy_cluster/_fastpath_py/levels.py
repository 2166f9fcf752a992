"""8-bit levels in float32 memory, and back.

A value is a level k = 0..255 when it has the very bits of float32(k) / float32(255): -0.0, NaN and
a value one bit off are none.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SCALE = np.float32(255)
_BLOCK = 1 << 16  # values until the next look whether all were levels; they stay in the cache


def find_levels(values: Buffer, levels: Buffer) -> bool:
    given = octets_of(values)
    found = octets_of(levels, writable=True)
    _check_value_count(len(given), len(found))
    floats = given.view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(floats), _BLOCK):
            block = floats[start : start + _BLOCK]
            scaled = np.fmin(np.fmax(block * _SCALE + np.float32(0.5), 0), _SCALE)
            target = found[start : start + _BLOCK]
            target[:] = scaled.astype(np.uint8)
            restored = target.astype(np.float32) / _SCALE
            if not np.array_equal(restored.view(np.uint32), block.view(np.uint32)):
                return False
    return True


def restore_values(levels: Buffer, values: Buffer) -> None:
    given = octets_of(levels)
    target = octets_of(values, writable=True)
    _check_value_count(len(target), len(given))
    floats = target.view(np.float32)
    for start in range(0, len(given), _BLOCK):
        block = given[start : start + _BLOCK].astype(np.float32)
        np.divide(block, _SCALE, out=floats[start : start + _BLOCK])


def undo_up_filter(rows: Buffer, row_size: int) -> None:
    octets = octets_of(rows, writable=True)
    if row_size < 1 or len(octets) % row_size:
        raise ValueError(f"{len(octets)} bytes are no whole rows of {row_size}")
    lines = octets.reshape(-1, row_size)
    for above, line in itertools.pairwise(lines):
        np.add(line, above, out=line)


def octets_of(memory: Buffer, *, writable: bool = False) -> npt.NDArray[np.uint8]:
    view = memoryview(memory).cast("B")
    if writable and view.readonly:
        raise BufferError("the memory is not writable")
    return np.frombuffer(view, np.uint8)


def _check_value_count(value_size: int, level_count: int) -> None:
    if value_size != 4 * level_count:
        raise ValueError(f"{value_size} bytes of float32 for {level_count} levels")
