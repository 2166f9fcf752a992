"""A tensor's memory in blocks: the same bytes back, and as soon as they are not smaller, none."""

from __future__ import annotations

import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.codec.blocks import BLOCK_SIZE, check_blocks, decode_blocks, encode_blocks
from comfy_cluster.codec.blosc import COMPRESSORS
from comfy_cluster.codec.interruption import interruptible
from comfy_cluster.codec.levels import Levels
from comfy_cluster.errors import CorruptPayload

examples = settings(max_examples=60, deadline=None, derandomize=True)
COUNT = 3
SIZE = (COUNT - 1) * BLOCK_SIZE + 1000
RAMP = np.arange(SIZE // 8, dtype=np.int64).tobytes()


def encoded(memory: bytes, compressor: str = "lz4", *, itemsize: int = 8) -> list[bytes]:
    blocks = encode_blocks(memoryview(memory), compressor, itemsize=itemsize)
    assert blocks is not None
    return blocks


def restored(blocks: list[bytes], size: int) -> bytes:
    views = [memoryview(block) for block in blocks]
    check_blocks(views, size)
    target = np.empty(size, np.uint8)
    decode_blocks(views, target)
    return target.tobytes()


def refuse(blocks: list[bytes], size: int, text: str) -> None:
    with pytest.raises(CorruptPayload, match=f"corrupt payload: {text}"):
        restored(blocks, size)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize("change", [-8, 0, 8, BLOCK_SIZE])
def test_sizes_around_a_block(compressor: str, itemsize: int, change: int) -> None:
    memory = RAMP[: BLOCK_SIZE + change]
    blocks = encoded(memory, compressor, itemsize=itemsize)
    assert len(blocks) == -(-len(memory) // BLOCK_SIZE)
    assert sum(map(len, blocks)) < len(memory)
    assert restored(blocks, len(memory)) == memory


@examples
@given(
    pattern=st.binary(min_size=1, max_size=24),
    repeats=st.integers(20, 800),
    itemsize=st.sampled_from([1, 2, 4, 8]),
    compressor=st.sampled_from(COMPRESSORS),
)
def test_any_pattern(pattern: bytes, repeats: int, itemsize: int, compressor: str) -> None:
    memory = pattern * repeats * itemsize
    blocks = encode_blocks(memoryview(memory), compressor, itemsize=itemsize)
    assert blocks is None or restored(blocks, len(memory)) == memory


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_photograph_as_float32(compressor: str, photograph: Levels) -> None:
    memory = (photograph.astype(np.float32) * np.float32(0.9)).tobytes()
    assert restored(encoded(memory, compressor, itemsize=4), len(memory)) == memory


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_noise_is_given_up_after_the_first_block(compressor: str) -> None:
    memory = random.Random(1).randbytes(BLOCK_SIZE) + bytes(5 * BLOCK_SIZE)
    blocks_begun = []
    with interruptible(lambda: blocks_begun.append(True)):
        assert encode_blocks(memoryview(memory), compressor, itemsize=4) is None
    assert len(blocks_begun) == 1
    assert encode_blocks(memoryview(memory[:5]), compressor, itemsize=1) is None


def test_noise_after_zeros_is_part_of_what_is_smaller() -> None:
    memory = bytes(BLOCK_SIZE) + random.Random(1).randbytes(BLOCK_SIZE)
    assert restored(encoded(memory), len(memory)) == memory


def test_nothing_has_no_blocks() -> None:
    assert encode_blocks(memoryview(b""), "lz4", itemsize=1) == []
    assert restored([], 0) == b""


class TestDamage:
    BLOCKS = encoded(RAMP)

    def test_another_count_is_refused(self) -> None:
        assert restored(self.BLOCKS, SIZE) == RAMP
        refuse([], SIZE, "0 blocks for 2098152 bytes")
        refuse(self.BLOCKS[:-1], SIZE, "2 blocks for")
        refuse([*self.BLOCKS, self.BLOCKS[-1]], SIZE, "4 blocks for")
        refuse(self.BLOCKS, 0, "3 blocks for 0 bytes")

    def test_another_size_is_refused(self) -> None:
        for size in (SIZE - 1, SIZE + 1, COUNT * BLOCK_SIZE, (COUNT - 1) * BLOCK_SIZE + 1):
            refuse(self.BLOCKS, size, "Blosc data hold 1000 bytes")

    def test_blocks_in_another_order_are_refused_where_their_sizes_tell(self) -> None:
        refuse(self.BLOCKS[::-1], SIZE, "Blosc data hold 1000 bytes, 1048576 expected")

    def test_cut_blocks_are_refused(self) -> None:
        first, *others = self.BLOCKS
        for size in (0, 1, 15, 16, 20, len(first) // 2, len(first) - 1):
            refuse([first[:size], *others], SIZE, "")

    def test_the_last_block_is_checked_before_the_first_is_decoded(self) -> None:
        damaged = bytearray(self.BLOCKS[0])
        damaged[50:100] = bytes(50)
        last = self.BLOCKS[2][:-1]
        refuse([bytes(damaged), self.BLOCKS[1], last], SIZE, r"Blosc data of \d+ bytes, \d+ are")

    def test_damaged_bytes_give_bytes_or_are_refused(self, rng: random.Random) -> None:
        memory = RAMP[:5000]
        for _ in range(400):
            block = bytearray(encoded(memory)[0])
            for _ in range(rng.choice([1, 2, 5])):
                block[rng.randrange(len(block))] = rng.randrange(256)
            try:
                assert len(restored([bytes(block)], len(memory))) == len(memory)
            except CorruptPayload as error:
                assert str(error).startswith("corrupt payload: ")


def test_blocks_that_declare_gigabytes_are_refused_with_little_memory() -> None:
    block = bytearray(encoded(bytes(1000))[0])
    struct.pack_into("<II", block, 4, 3 << 30, 3 << 30)
    views = [memoryview(bytes(block))] * 5
    tracemalloc.start()
    try:
        for size in (1000, 5 * BLOCK_SIZE, 3 << 30, 1 << 62):
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                check_blocks(views, size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10
