"""Segments: what may be mapped, and what a peer may send that must not be."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator

import pytest

from comfy_cluster.transport.shared_memory import system_calls
from comfy_cluster.transport.shared_memory.system_calls import SEALS

SIZE = 16_384


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def memfd_with(seals: int, size: int = SIZE) -> int:
    fd = system_calls.create_segment(size)
    if seals:
        fcntl.fcntl(fd, system_calls.F_ADD_SEALS, seals)
    return fd


def test_a_sealed_segment_is_accepted_up_to_its_size() -> None:
    with closing(system_calls.create_segment(SIZE)) as fd:
        system_calls.seal(fd)
        system_calls.check_segment(fd, SIZE)
        system_calls.check_segment(fd, 1)
        for capacity in (0, SIZE + 1, 1 << 62):
            with pytest.raises(ValueError, match="announced"):
                system_calls.check_segment(fd, capacity)


@pytest.mark.parametrize("missing", [0x1, 0x2, 0x4, 0x10])
def test_a_segment_without_one_of_the_seals_is_refused(missing: int) -> None:
    with closing(memfd_with(SEALS & ~missing)) as fd, pytest.raises(ValueError, match="seals"):
        system_calls.check_segment(fd, SIZE)


def pipe_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def regular_file() -> int:
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        return os.dup(file.fileno())


def huge_pages() -> int:
    """A memfd of hugetlbfs: an access to it fails where no huge page is left."""
    fd = os.memfd_create("huge", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    os.ftruncate(fd, 2 << 20)
    fcntl.fcntl(fd, system_calls.F_ADD_SEALS, SEALS)
    return fd


@pytest.mark.parametrize("make", [pipe_end, regular_file, huge_pages])
def test_what_is_no_segment_is_refused(make: Callable[[], int]) -> None:
    with closing(make()) as fd, pytest.raises(ValueError):
        system_calls.check_segment(fd, SIZE)


def test_a_sealed_segment_keeps_its_size_and_takes_no_more_writers() -> None:
    with closing(system_calls.create_segment(SIZE)) as fd:
        written = system_calls.map_writable(fd, SIZE)
        system_calls.seal(fd)
        for size in (1, 2 * SIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError, match="mmap"):
            system_calls.map_writable(fd, SIZE)
        ctypes.memset(written, 7, SIZE)  # the mapping that was there still writes
        seen = system_calls.map_private(fd, SIZE)
        assert ctypes.string_at(seen, SIZE) == b"\7" * SIZE
        system_calls.unmap(seen, SIZE)
        system_calls.unmap(written, SIZE)


def test_memory_that_cannot_be_had_is_an_error_and_no_signal() -> None:
    with closing(system_calls.create_segment(SIZE)) as fd:
        address = system_calls.map_writable(fd, SIZE)
        system_calls.populate(address, SIZE)
        assert os.fstat(fd).st_blocks * 512 == SIZE
        system_calls.unmap(address, SIZE)
        with pytest.raises(MemoryError):
            system_calls.populate(address, SIZE)  # nothing is mapped there
