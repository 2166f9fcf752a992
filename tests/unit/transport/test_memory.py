"""Destination memory outlives everything but its last view; its budget does not."""

from __future__ import annotations

import ctypes
import gc
import mmap
import weakref

import pytest

from comfy_cluster.transport.memory import ALIGNMENT, MAPPED_SIZE, ReceivedBuffer, allocate

SIZES = [0, 1, 1000, MAPPED_SIZE - 1, MAPPED_SIZE, MAPPED_SIZE + 12345]


@pytest.mark.parametrize("size", [1, 63, 1000, 100_000, MAPPED_SIZE])
def test_memory_is_aligned(size: int) -> None:
    for memory in [allocate(size) for _ in range(20)]:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert address % ALIGNMENT == 0


@pytest.mark.parametrize("size", SIZES)
def test_memory_is_writable_zeroed_and_of_the_right_size(size: int) -> None:
    memory = allocate(size)
    assert (len(memory), memory.format, memory.readonly) == (size, "B", False)
    assert bytes(memory) == bytes(size)
    if size:
        memory[-1] = 7


def test_memory_that_is_not_there_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        allocate(1 << 60)


def test_release_and_garbage_collection_return_the_budget_once() -> None:
    returned: list[str] = []
    released = ReceivedBuffer(allocate(10), lambda: returned.append("released"))
    released.release()
    released.release()
    dropped = ReceivedBuffer(allocate(10), lambda: returned.append("dropped"))
    del released, dropped
    gc.collect()
    assert returned == ["released", "dropped"]


@pytest.mark.parametrize("size", [4096, MAPPED_SIZE])
def test_tensor_keeps_the_memory_after_release(size: int) -> None:
    torch = pytest.importorskip("torch")
    buffer = ReceivedBuffer(allocate(size), lambda: None)
    body = buffer.data[:17]
    tensor = torch.frombuffer(buffer.data[16:], dtype=torch.uint8)
    buffer.release()
    del buffer
    gc.collect()
    tensor.fill_(3)
    assert int(tensor.sum()) == 3 * (size - 16)
    assert bytes(body) == bytes(16) + b"\3"


def test_memory_goes_with_its_last_view() -> None:
    torch = pytest.importorskip("torch")
    memory = allocate(MAPPED_SIZE)
    assert isinstance(memory.obj, mmap.mmap)
    mapped = weakref.ref(memory.obj)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    del memory
    gc.collect()
    assert mapped() is not None
    del tensor
    gc.collect()
    assert mapped() is None
