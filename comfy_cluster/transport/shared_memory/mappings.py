"""A receiver's mappings of segments: made for a payload, watched until nobody sees them.

How it works. Each payload is one mapping, private to this process, and an array over it, from which
tensors are made as views. When the last view is gone, `on_unseen` is told, from whatever thread
that happens in, in the middle of whatever it does: it must take no lock. A mapping to which nobody
wrote shows the segment as it is, so it can be kept and show the next payload without one page
fault. Where somebody wrote, his pages are in its way, and it is unmapped.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from comfy_cluster.transport.shared_memory import forks, system_calls

_READ_SIZE = 1 << 20  # bytes of /proc/self/pagemap at once: half a GiB of memory
_PAGEMAP_ENTRY = 8  # bytes a page
# Documentation/admin-guide/mm/pagemap.rst: of a file or shared, swapped out, present.
_IS_SHARED, _IS_SWAPPED, _IS_PRESENT = (np.uint64(1 << bit) for bit in (61, 62, 63))


class Mapping:
    """Where a segment is seen."""

    def __init__(self, fd: int, capacity: int) -> None:
        """OSError; ValueError: the descriptor is not safe to map."""
        system_calls.check_segment(fd, capacity)
        self.capacity = capacity
        self._fork_count = forks.count()
        self._address = system_calls.map_private(fd, capacity)
        self._is_mapped = True

    @property
    def is_seen_elsewhere(self) -> bool:
        """A child of this process may see it too."""
        return self._fork_count != forks.count()

    def show(self, size: int, on_unseen: Callable[[], object]) -> memoryview:
        """Its first bytes, writable; `on_unseen()` when the last view of them is gone."""
        shown = _Shown(self._address, size)
        finalizer = weakref.finalize(shown, on_unseen)
        finalizer.atexit = False  # at the end of the process nobody waits for it
        return np.asarray(shown).data

    def is_untouched(self) -> bool:
        """Whether no page of it was written to, as far as the system tells."""
        try:
            return not _has_own_pages(self._address, self.capacity)
        except OSError:  # no /proc in this container
            return False

    def unmap(self) -> None:
        """Takes a while for a large one. Twice is fine, but not from two threads."""
        if self._is_mapped:
            self._is_mapped = False
            system_calls.unmap(self._address, self.capacity)


class _Shown:
    """What numpy makes an array of, and keeps alive with it."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "data": (address, False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


def _has_own_pages(address: int, capacity: int) -> bool:
    page_count = -(-capacity // mmap.PAGESIZE)
    offset = address // mmap.PAGESIZE * _PAGEMAP_ENTRY
    end = offset + page_count * _PAGEMAP_ENTRY
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while offset < end:
            read = os.pread(fd, min(_READ_SIZE, end - offset), offset)
            entries = np.frombuffer(read, np.uint64)
            is_there = (entries & (_IS_PRESENT | _IS_SWAPPED)) != 0
            if not len(entries) or bool(np.any(is_there & ((entries & _IS_SHARED) == 0))):
                return True
            offset += len(read)
    finally:
        os.close(fd)
    return False
