"""Blosc data: the same bytes back, and nothing that the library would believe too much."""

from __future__ import annotations

import random
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.codec import blosc
from comfy_cluster.codec.blosc import COMPRESSORS, HEADER_SIZE, check, compress, decompress
from comfy_cluster.codec.levels import Levels
from comfy_cluster.errors import CorruptPayload

examples = settings(max_examples=100, deadline=None, derandomize=True)
HEADER = struct.Struct("<BBBBIII")
# Its fields.
VERSION, COMPRESSOR_VERSION, FLAGS, ITEM_SIZE, SIZE, BLOCK_SIZE, COMPRESSED_SIZE = range(7)
LZ4_FLAGS, ZSTD_FLAGS, COPIED, BIT_SHUFFLE = 1 << 5, 4 << 5, 2, 4
KIB = 1 << 10
PATTERN = bytes(range(64)) * 512


def restore(data: bytes, size: int) -> bytes:
    check(memoryview(data), size)
    target = np.empty(size, np.uint8)
    decompress(memoryview(data), target)
    return target.tobytes()


def with_header(data: bytes, changes: dict[int, int]) -> bytes:
    fields = list(HEADER.unpack_from(data))
    for field, value in changes.items():
        fields[field] = value
    return HEADER.pack(*fields) + data[HEADER_SIZE:]


def cut(data: bytes, size: int) -> bytes:
    """The first bytes, and a header that says so."""
    return with_header(data[:size], {COMPRESSED_SIZE: size})


def chunk(size: int, block_size: int, *, streams: list[bytes], flags: int, itemsize: int) -> bytes:
    """Blosc data by the format's description; each block has the same streams."""
    count = -(-size // block_size)
    block = b"".join(struct.pack("<I", len(stream)) + stream for stream in streams)
    start = HEADER_SIZE + 4 * count
    body = struct.pack("<I", start) * count + block
    return HEADER.pack(2, 1, flags, itemsize, size, block_size, HEADER_SIZE + len(body)) + body


# LZ4 of 128 zeros: one as it is, a match of 122 at a distance of 1, five as they are.
ZEROS_128 = b"\x1f\x00\x01\x00" + bytes([122 - 19]) + b"\x50" + bytes(5)


def test_numcodecs_is_there_as_the_requirements_say() -> None:
    assert blosc.is_available()


@pytest.mark.parametrize("compressor", COMPRESSORS)
class TestRoundTrip:
    @examples
    @given(data=st.binary(min_size=1, max_size=3000), itemsize=st.sampled_from([1, 2, 4, 8]))
    def test_any_bytes(self, compressor: str, data: bytes, itemsize: int) -> None:
        data = data * itemsize
        compressed = compress(data, compressor, itemsize=itemsize)
        assert len(compressed) <= len(data) + HEADER_SIZE
        assert restore(compressed, len(data)) == data

    @pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
    @pytest.mark.parametrize("size", [8, 120, 128, 4 * KIB, 16 * KIB - 8, 100 * KIB + 8, 1 << 20])
    def test_sizes_around_those_of_the_librarys_blocks(
        self, compressor: str, size: int, itemsize: int
    ) -> None:
        for data in (bytes(size), (PATTERN * 32)[:size], random.Random(1).randbytes(size)):
            assert restore(compress(data, compressor, itemsize=itemsize), size) == data

    def test_photograph_gets_smaller(self, compressor: str, photograph: Levels) -> None:
        rows = np.diff(photograph.reshape(len(photograph), -1), axis=0, prepend=np.uint8(0))
        data = rows.tobytes()
        compressed = compress(data, compressor, itemsize=1)
        assert len(compressed) < 0.9 * len(data)
        assert restore(compressed, len(data)) == data

    def test_all_threads_read_what_any_of_them_wrote(self, compressor: str) -> None:
        """On the main thread the library works with threads of its own, on others without."""
        data = PATTERN * 16
        written = compress(data, compressor, itemsize=4)
        with ThreadPoolExecutor(4) as pool:
            others = list(pool.map(lambda _: compress(data, compressor, itemsize=4), range(8)))
            found = list(pool.map(lambda each: restore(each, len(data)), [written, *others]))
        assert all(each == data for each in found)
        assert all(restore(each, len(data)) == data for each in others)


class TestHeader:
    DATA = compress(PATTERN, "zstd", itemsize=2)

    @pytest.mark.parametrize(
        ("field", "values"),
        [
            (VERSION, [0, 1, 3, 255]),
            (COMPRESSOR_VERSION, [0, 2, 255]),
            (FLAGS, [0, 2 << 5, 3 << 5, 5 << 5, 7 << 5, ZSTD_FLAGS | 8, ZSTD_FLAGS | COPIED]),
            (ITEM_SIZE, [0, 3, 5, 16, 255]),
            (SIZE, [0, 1, len(PATTERN) - 1, len(PATTERN) + 1, 2**31, 2**32 - 1]),
            (BLOCK_SIZE, [0, 1, 3, len(PATTERN) + 1, 2**31 - 1, 2**31, 2**32 - 1]),
            (COMPRESSED_SIZE, [0, 1, 15, 16, 2**31 - 1, 2**31, 2**32 - 1]),
        ],
    )
    def test_each_wrong_field_is_refused(self, field: int, values: list[int]) -> None:
        assert restore(self.DATA, len(PATTERN)) == PATTERN
        for value in values:
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                restore(with_header(self.DATA, {field: value}), len(PATTERN))

    def test_data_that_end_before_their_declared_size_never_reach_the_library(self) -> None:
        """It would read on behind their end."""
        for size in range(len(self.DATA)):
            with pytest.raises(CorruptPayload, match=r"Blosc data"):
                check(memoryview(self.DATA[:size]), len(PATTERN))

    def test_data_larger_than_any_that_the_library_makes_are_refused(self) -> None:
        data = compress(random.Random(2).randbytes(KIB), "lz4", itemsize=1)
        assert len(data) == KIB + HEADER_SIZE
        larger = with_header(data + b"\x00", {COMPRESSED_SIZE: len(data) + 1})
        with pytest.raises(CorruptPayload, match="Blosc header"):
            check(memoryview(larger), KIB)

    def test_blocks_too_small_to_be_worth_their_time_are_refused(self) -> None:
        """Zstandard takes 5 us to begin, be the block one byte or 16 KiB."""
        size = 1 << 20
        for block_size in (16, 64, 1000):
            data = chunk(size, block_size, streams=[b"?" * 20], flags=ZSTD_FLAGS | 16, itemsize=1)
            with pytest.raises(CorruptPayload, match="Blosc header"):
                check(memoryview(data), size)

    def test_declared_gigabytes_take_no_memory(self) -> None:
        size = 3 << 30
        data = with_header(self.DATA, {SIZE: size, BLOCK_SIZE: size})
        tracemalloc.start()
        try:
            with pytest.raises(CorruptPayload, match="hold 3221225472 bytes"):
                check(memoryview(data), len(PATTERN))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 64 * KIB


class TestHostileData:
    @pytest.mark.parametrize("compressor", COMPRESSORS)
    @pytest.mark.parametrize("data", [PATTERN, random.Random(3).randbytes(300), bytes(100)])
    def test_cut_data_that_admit_it_are_refused(self, compressor: str, data: bytes) -> None:
        compressed = compress(data, compressor, itemsize=1)
        for size in range(HEADER_SIZE, len(compressed)):
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                restore(cut(compressed, size), len(data))

    def test_split_that_leaves_bytes_of_a_block_unwritten_is_refused(self) -> None:
        """Eight streams of 515 bytes for a block of 4,127: the rest would be foreign memory."""
        size = 4 * 4127
        streams = [ZEROS_128[:4] + bytes([255, 515 - 6 - 19 - 255]) + b"\x50" + bytes(5)] * 8
        even = chunk(4 * 4120, 4120, streams=streams, flags=LZ4_FLAGS | BIT_SHUFFLE, itemsize=8)
        assert restore(even, 4 * 4120) == bytes(4 * 4120)
        uneven = chunk(size, 4127, streams=streams, flags=LZ4_FLAGS | BIT_SHUFFLE, itemsize=8)
        with pytest.raises(CorruptPayload, match="Blosc header"):
            check(memoryview(uneven), size)

    @pytest.mark.parametrize("start", [0, 1, 21, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1])
    def test_start_of_a_block_outside_the_data_is_refused(self, start: int) -> None:
        data = bytearray(compress(PATTERN, "zstd", itemsize=1))
        restore(bytes(data), len(PATTERN))
        struct.pack_into("<I", data, HEADER_SIZE, start)
        with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
            restore(bytes(data), len(PATTERN))

    @pytest.mark.parametrize("size", [0, 1, 127, 1000, 2**31 - 1, 2**31, 2**32 - 1])
    def test_stream_of_another_size_than_it_has_is_refused(self, size: int) -> None:
        flags = LZ4_FLAGS | 16
        data = bytearray(chunk(128, 128, streams=[ZEROS_128], flags=flags, itemsize=1))
        assert restore(bytes(data), 128) == bytes(128)
        struct.pack_into("<I", data, HEADER_SIZE + 4, size)
        with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
            restore(bytes(data), 128)

    def test_data_declared_to_be_copied_but_of_another_size_are_refused(self) -> None:
        data = compress(bytes(100), "lz4", itemsize=1)
        assert data[2] & COPIED and restore(data, 100) == bytes(100)
        for size in (HEADER_SIZE, len(data) - 1):
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                restore(cut(data, size), 100)

    @pytest.mark.parametrize("compressor", COMPRESSORS)
    @pytest.mark.parametrize("itemsize", [1, 2, 8])
    def test_damaged_data_give_bytes_or_are_refused(
        self, compressor: str, itemsize: int, rng: random.Random
    ) -> None:
        valid = compress(PATTERN, compressor, itemsize=itemsize)
        for _ in range(400):
            data = bytearray(valid)
            for _ in range(rng.choice([1, 2, 5])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            struct.pack_into("<I", data, HEADER_SIZE - 4, len(data))
            try:
                assert len(restore(bytes(data), len(PATTERN))) == len(PATTERN)
            except CorruptPayload as error:
                assert str(error).startswith("corrupt payload: ")
