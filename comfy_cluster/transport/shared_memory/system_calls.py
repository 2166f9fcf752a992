"""System calls on segments: creating, sealing, checking and mapping them. Linux only.

Mappings are made with ctypes, because Python's `mmap` keeps a duplicate of the descriptor for each:
thousands of tensors would use up what a process may have open. What takes its time lets go of the
GIL; what takes a microsecond does not, because getting it back takes 5 ms where other Python code
is busy, and a payload needs six of these calls.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from functools import cache
from typing import Any

# linux/fcntl.h; Python has the last one from 3.13 on.
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_FUTURE_WRITE = 0x1, 0x2, 0x4, 0x10
# No access to a mapping can fail any more, and only the sender's own mapping can write.
SEALS = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_FUTURE_WRITE
TMPFS_MAGIC = 0x01021994  # what memfds are of; those of hugetlbfs may fail to fault (linux/magic.h)
MADV_DONTFORK, MADV_HUGEPAGE = 10, 14
MADV_POPULATE_WRITE = 23  # Linux 5.14
MAP_FAILED = ctypes.c_void_p(-1).value


@cache
def _libc() -> Any:
    """For calls that take their time."""
    return _declared(ctypes.CDLL(None, use_errno=True))


@cache
def _quick_libc() -> Any:
    """For calls that keep the GIL."""
    return _declared(ctypes.PyDLL(None, use_errno=True))


def _declared(libc: Any) -> Any:
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.fcntl.argtypes = [ctypes.c_int, ctypes.c_int]
    libc.lseek.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int]
    libc.lseek.restype = ctypes.c_long
    libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
    return libc


def create_segment(capacity: int) -> int:
    """The descriptor of a new segment. OSError."""
    fd = os.memfd_create("comfy-cluster", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, capacity)
    except OSError:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """From now on its size is fixed and only mappings that exist can write. OSError."""
    fcntl.fcntl(fd, F_ADD_SEALS, SEALS)


def check_segment(fd: int, capacity: int) -> None:
    """ValueError: mapping `capacity` bytes of what a peer sent could end this process."""
    seals = _quick_libc().fcntl(fd, F_GET_SEALS)
    if seals < 0:
        code = ctypes.get_errno()
        raise ValueError(f"the descriptor is no segment: {os.strerror(code)}")
    if seals & SEALS != SEALS:
        raise ValueError(f"the segment has seals {seals:#x}, expected {SEALS:#x}")
    if _file_system_of(fd) != TMPFS_MAGIC:
        raise ValueError("the segment is of another file system than tmpfs")
    size = _quick_libc().lseek(fd, 0, os.SEEK_END)
    if not 0 < capacity <= size:
        raise ValueError(f"the segment has {size} bytes, {capacity} were announced")


def _file_system_of(fd: int) -> int:
    found = (ctypes.c_long * 64)()  # struct statfs is smaller; its first field is the type
    if _quick_libc().fstatfs(fd, ctypes.byref(found)):
        raise ValueError(f"fstatfs: {os.strerror(ctypes.get_errno())}")
    return int(found[0])


def map_writable(fd: int, capacity: int) -> int:
    """The address of a mapping that writes into the segment. OSError."""
    address = _map(fd, capacity, mmap.MAP_SHARED)
    # A fork has no use for it, and would copy its page tables.
    _quick_libc().madvise(address, capacity, MADV_DONTFORK)
    # Has an effect where the system's administrator allows it for shared memory.
    _quick_libc().madvise(address, capacity, MADV_HUGEPAGE)
    return address


def map_private(fd: int, capacity: int) -> int:
    """The address of a mapping that sees the segment, and keeps what is written there. OSError."""
    return _map(fd, capacity, mmap.MAP_PRIVATE)


def _map(fd: int, capacity: int, flags: int) -> int:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = _quick_libc().mmap(None, capacity, protection, flags, fd, 0)
    if address is None or address == MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {capacity} bytes: {os.strerror(code)}")
    return int(address)


def unmap(address: int, capacity: int) -> None:
    _libc().munmap(address, capacity)


def populate(address: int, size: int) -> None:
    """Have the pages there before they are written. MemoryError: the system has none.

    Writing to a page that cannot be had would end the process.
    """
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    if _libc().madvise(start, address + size - start, MADV_POPULATE_WRITE):
        code = ctypes.get_errno()
        if code != errno.EINVAL:  # an older kernel: the pages come with the first write
            raise MemoryError(f"{size} bytes of shared memory: {os.strerror(code)}")


def has_input(fd: int) -> bool:
    """Whether a record waits to be read; not whether the other end is gone."""
    size = ctypes.c_int(0)
    return _quick_libc().ioctl(fd, _FIONREAD, ctypes.byref(size)) == 0 and size.value > 0


def close(fd: int) -> None:
    """Of a descriptor whose closing frees nothing large."""
    _quick_libc().close(fd)


_FIONREAD = 0x541B
