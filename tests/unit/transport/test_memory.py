"""Destination memory outlives everything but its last view; its budget does not."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref

import pytest

from comfy_cluster.transport.memory import (
    ALIGNMENT,
    MAPPED_SIZE,
    MemoryPool,
    ReceivedBuffer,
    allocate,
)

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
    lent = weakref.ref(memory.obj)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    del memory
    gc.collect()
    assert lent() is not None
    del tensor
    gc.collect()
    assert lent() is None


def address_of(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_memory_that_went_serves_the_next_payload() -> None:
    pool = MemoryPool(8 << 20)
    memory = pool.allocate(3 << 20)
    first = address_of(memory)
    assert pool.kept_size == 0
    del memory
    gc.collect()
    assert pool.kept_size == 4 << 20  # whole huge pages
    again = pool.allocate(2 << 20)
    assert (address_of(again), len(again), pool.kept_size) == (first, 2 << 20, 0)


def test_memory_in_use_is_lent_to_nobody_else() -> None:
    torch = pytest.importorskip("torch")
    pool = MemoryPool(64 << 20)
    tensors = [torch.frombuffer(pool.allocate(2 << 20), dtype=torch.uint8) for _ in range(4)]
    assert len({tensor.data_ptr() for tensor in tensors}) == 4
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    kept = tensors.pop()[5:100]  # a view of it is enough
    gc.collect()
    again = torch.frombuffer(pool.allocate(2 << 20), dtype=torch.uint8)
    again.fill_(99)
    assert {int(tensor[0]) for tensor in tensors} == {0, 1, 2}
    assert int(kept.max()) == 3


class Keeper:
    """Part of a cycle; brings what it holds back to life when the cycle is collected."""

    saved: list[memoryview]

    def __init__(self, memory: memoryview, saved: list[memoryview]) -> None:
        self.memory = memory
        self.saved = saved
        self.cycle = self

    def __del__(self) -> None:
        self.saved.append(self.memory)


def test_memory_in_a_cycle_is_lent_to_nobody_else_before_its_last_view_goes() -> None:
    pool = MemoryPool(64 << 20)
    saved: list[memoryview] = []
    memory = pool.allocate(2 << 20)
    memory[:4] = b"mine"
    Keeper(memory, saved)
    del memory
    gc.collect()
    other = pool.allocate(2 << 20)
    other[:4] = b"else"
    assert (bytes(saved[0][:4]), pool.kept_size) == (b"mine", 0)
    saved.clear()
    gc.collect()
    assert pool.kept_size == 2 << 20


def test_memory_that_goes_while_the_pool_is_at_work_is_kept_afterwards() -> None:
    pool = MemoryPool(4 << 20)
    kept, going = pool.allocate(2 << 20), [pool.allocate(4 << 20)]
    del kept
    with pool._lock:  # as if a garbage collection came in the midst of `allocate`
        going.clear()
        assert pool.kept_size == 2 << 20
    again = pool.allocate(1 << 20)  # had the first one before the second came
    assert (len(again), pool.kept_size) == (1 << 20, 4 << 20)


def test_a_kept_block_must_not_be_far_too_large() -> None:
    pool = MemoryPool(64 << 20)
    pool.allocate(32 << 20)
    gc.collect()
    assert pool.kept_size == 32 << 20
    small = pool.allocate(4 << 20)
    assert pool.kept_size == 32 << 20
    assert len(small) == 4 << 20


def test_no_more_is_kept_than_the_limit() -> None:
    pool = MemoryPool(10 << 20)
    memories = [pool.allocate(4 << 20) for _ in range(5)]
    memories.clear()
    gc.collect()
    assert pool.kept_size == 8 << 20
    too_large = pool.allocate(16 << 20)
    del too_large
    gc.collect()
    assert pool.kept_size == 0


def test_memory_given_back_by_many_threads_is_counted_right() -> None:
    pool = MemoryPool(1 << 30)

    def borrow() -> None:
        for _ in range(50):
            pool.allocate(2 << 20)

    threads = [threading.Thread(target=borrow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert pool.kept_size == (2 << 20) * len(pool._kept) <= 4 * (2 << 20)
