"""Memory for payloads that arrive, and what the layers above get to hold of it.

Allocates; does not count: the budget is `protocol/`'s, and is told of `ReceivedBuffer.release`.

How it works: memory is never unmapped by hand, because a tensor made by `torch.frombuffer` or
`numpy.frombuffer` keeps a reference to the memoryview and no export of it: unmapping below it would
succeed, and the next access would end the process. It goes when the last view of it goes. Budget
and memory part ways there on purpose: ComfyUI caches tensors for as long as it likes, and a budget
that waited for them would block all later transfers.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from collections.abc import Callable

ALIGNMENT = 64  # bytes: a cache line, and the widest vector registers; prefixes are multiples of it
# Bytes from which fresh pages of their own pay off: four huge pages on x86-64 and most of ARM64.
# Below, malloc reuses memory that was touched before.
MAPPED_SIZE = 8 << 20


def allocate(size: int) -> memoryview:
    """Writable memory of `size` bytes, zeroed, aligned to `ALIGNMENT`. Raises MemoryError."""
    if size < MAPPED_SIZE:
        return _aligned(size)
    try:
        return memoryview(_map(size))
    except OSError as error:
        raise MemoryError(f"{size} bytes for a payload: {error}") from error


def _aligned(size: int) -> memoryview:
    memory = bytearray(size + ALIGNMENT - 1)
    offset = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % ALIGNMENT
    return memoryview(memory)[offset : offset + size]


def _map(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    # Private, although mmap's default is shared: shared memory gets no huge pages on madvise.
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # First touch by 4 KiB pages costs as much as the transfer itself.
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


class ReceivedBuffer:
    """A payload that arrived whole and with the right digest.

    Its bytes count against the memory budget until `release`, or until this object is garbage;
    `data`, and what was made from it, stays valid after either.
    """

    def __init__(self, data: memoryview, on_release: Callable[[], object]) -> None:
        self.data = data
        """The payload; writable, format "B"."""
        self._finalizer = weakref.finalize(self, on_release)
        # At interpreter exit nobody waits for the budget any more.
        self._finalizer.atexit = False

    def release(self) -> None:
        """Returns the budget. Calling it twice is fine."""
        self._finalizer()
