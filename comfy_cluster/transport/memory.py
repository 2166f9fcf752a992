"""Memory for payloads that arrive, and what the layers above get to hold of it.

Allocates; does not count: the budget is `protocol/`'s, and is told of `ReceivedBuffer.release`.

How it works: memory is never unmapped by hand, because a tensor made by `torch.frombuffer` or
`numpy.frombuffer` keeps a reference to the memoryview and no export of it: unmapping below it would
succeed, and the next access would end the process. It goes when the last view of it goes. Budget
and memory part ways there on purpose: ComfyUI caches tensors for as long as it likes, and a budget
that waited for them would block all later transfers.

Fresh pages must be zeroed by the kernel, which costs as much as receiving into them. So memory that
goes is kept in a `MemoryPool` for the next payload; the kernel may take its pages back meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np

ALIGNMENT = 64  # bytes: a cache line, and the widest vector registers; prefixes are multiples of it
# Bytes from which pages of their own, that are kept, pay off. Below, malloc reuses memory that was
# touched before.
MAPPED_SIZE = 1 << 20
HUGE_PAGE = 2 << 20  # bytes; on x86-64 and most of ARM64
LARGEST_WASTE = 2  # times the size that is asked for, of a kept block that serves for it


class MemoryPool:
    """Gives memory, and keeps up to `keep_limit` bytes of what went for later. Any thread."""

    def __init__(self, keep_limit: int) -> None:
        self._keep_limit = keep_limit
        self._kept: list[mmap.mmap] = []
        self._kept_size = 0
        # Memory goes from any thread, in the midst of anything, a garbage collection in this pool's
        # own code included: it is put here, and whoever can have the lock looks after it.
        self._returned: deque[mmap.mmap] = deque()
        self._lock = threading.Lock()

    @property
    def kept_size(self) -> int:
        """Bytes that wait for the next payload."""
        return self._kept_size

    def allocate(self, size: int) -> memoryview:
        """Writable memory of `size` bytes, aligned to `ALIGNMENT`, with any content.

        Raises MemoryError.
        """
        if size < MAPPED_SIZE:
            return _aligned(size)
        try:
            block = self._take(size) or _map(-(-size // HUGE_PAGE) * HUGE_PAGE)
            lent = (ctypes.c_ubyte * len(block)).from_buffer(block)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"{size} bytes for a payload: {error}") from error
        weakref.finalize(lent, self._give_back, block).atexit = False
        # By way of an array, which the garbage collector does not look into: it calls finalisers of
        # what it finds in a cycle before the rest of the cycle has had its last look at it.
        return np.frombuffer(memoryview(lent).cast("B"), np.uint8).data[:size]

    def _take(self, size: int) -> mmap.mmap | None:
        with self._lock:
            fitting = [block for block in self._kept if size <= len(block) <= LARGEST_WASTE * size]
            block = min(fitting, key=len, default=None)
            if block is not None:
                self._kept.remove(block)
                self._kept_size -= len(block)
        self._keep_returned()
        return block

    def _give_back(self, block: mmap.mmap) -> None:
        """The last view of a block has gone."""
        if hasattr(mmap, "MADV_FREE"):  # the kernel may have the pages while nobody needs them
            with contextlib.suppress(OSError):
                block.madvise(mmap.MADV_FREE)
        self._returned.append(block)
        self._keep_returned()

    def _keep_returned(self) -> None:
        """Never waits: whoever has the lock looks again after giving it back."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._keep(self._returned)
            finally:
                self._lock.release()

    def _keep(self, returned: deque[mmap.mmap]) -> None:
        """Under the lock; what is over the limit goes."""
        while returned:
            block = returned.popleft()
            self._kept.append(block)
            self._kept_size += len(block)
        while self._kept_size > self._keep_limit:
            self._kept_size -= len(self._kept.pop(0))


def allocate(size: int) -> memoryview:
    """Writable memory of `size` bytes, zeroed, aligned to `ALIGNMENT`. Raises MemoryError."""
    return MemoryPool(0).allocate(size)


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
