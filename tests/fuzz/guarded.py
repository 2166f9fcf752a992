"""Memory that ends where any access ends the process, and memory that is never what it was.

The libraries below the codec are compiled: what they read or write behind the end of a buffer goes
unnoticed, and so do bytes that they leave as they were. On Linux both show. Used by the targets.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import numpy.typing as npt

_NO_ACCESS = 0  # PROT_NONE
_FILL_BYTE = -6  # M_PERTURB of mallopt: what new and freed memory is filled with


class GuardedMemory:
    """Room for `capacity` bytes; what it holds lies at its very end."""

    def __init__(self, capacity: int) -> None:
        self._end = -(-capacity // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, self._end + mmap.PAGESIZE)
        if sys.platform == "linux":
            address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
            guard = ctypes.c_void_p(address + self._end)
            assert ctypes.CDLL(None).mprotect(guard, mmap.PAGESIZE, _NO_ACCESS) == 0

    def view(self, size: int) -> memoryview:
        """The last `size` bytes."""
        return memoryview(self._memory)[self._end - size : self._end]

    def holding(self, data: bytes) -> memoryview:
        """A copy of `data`, until the next call."""
        view = self.view(len(data))
        view[:] = data
        return view

    def array(self, size: int, fill: int) -> npt.NDArray[np.uint8]:
        """`size` bytes that all are `fill`."""
        array = np.frombuffer(self.view(size), np.uint8)
        array.fill(fill)
        return array


def fill_new_memory(value: int | None) -> None:
    """From now on the C library's memory begins with bytes of that value; None: as it comes."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_FILL_BYTE, 0 if value is None else value ^ 0xFF)
