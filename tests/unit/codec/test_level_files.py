"""CCL0 and CCL1 files: the levels back, the layout that the module describes, damage refused."""

from __future__ import annotations

import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.codec import blosc
from comfy_cluster.codec.interruption import PIECE_SIZE
from comfy_cluster.codec.level_files import (
    BANDS_SIGNATURE,
    HEADER_SIZE,
    LARGEST_ROW,
    PLAIN_SIGNATURE,
    band_rows,
    check_bands,
    check_plain,
    compressor_of_bands,
    decode_bands,
    decode_plain,
    encode_bands,
    encode_plain,
    fits_bands,
)
from comfy_cluster.codec.levels import Levels
from comfy_cluster.codec.png import encode_png
from comfy_cluster.errors import CorruptPayload

examples = settings(max_examples=60, deadline=None, derandomize=True)
Shape = tuple[int, int, int]
SHAPES: list[Shape] = [
    (1, 1, 1),
    (1, 5000, 3),
    (5000, 1, 3),
    (37, 41, 1),
    (37, 41, 2),
    (37, 41, 3),
    (37, 41, 4),
    (37, 41, 7),
    (1100, 1000, 1),  # two bands
    (3, PIECE_SIZE // 2, 3),  # a row a band, each larger than a piece
    (2 * PIECE_SIZE + 1, 1, 1),
]
SHAPE = (40, 30, 3)


def some_levels(shape: Shape, seed: int = 0) -> Levels:
    """Levels that compress, and differ in each row, column and channel."""
    height, width, channels = shape
    axes = np.arange(height)[:, None, None], np.arange(width)[:, None], np.arange(channels)
    smooth = (axes[0] * 3 + axes[1] * axes[1] // 7 + axes[2] * 50) % 256
    noise = np.random.default_rng(seed).integers(0, 3, shape)
    levels: Levels = (smooth + noise).astype(np.uint8)
    return levels


def restored(data: bytes, shape: Shape) -> Levels:
    """By the file's signature."""
    view = memoryview(data)
    if data.startswith(PLAIN_SIGNATURE):
        check_plain(view, shape)
        return decode_plain(view, shape)
    assert data.startswith(BANDS_SIGNATURE)
    check_bands(view, shape)
    return decode_bands(view, shape)


def bands_of(data: bytes) -> list[bytes]:
    bands, offset = [], HEADER_SIZE
    while offset < len(data):
        (size,) = struct.unpack_from(">I", data, offset)
        bands.append(data[offset + 4 : offset + 4 + size])
        offset += 4 + size
    return bands


def file_of(header: bytes, bands: list[bytes]) -> bytes:
    return header + b"".join(struct.pack(">I", len(band)) + band for band in bands)


LEVELS = some_levels(SHAPE)
PLAIN = encode_plain(LEVELS)
BANDS = encode_bands(LEVELS, "zstd")


class TestRoundTrip:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes_of_one_and_of_many_bands(self, shape: Shape) -> None:
        levels = some_levels(shape)
        for data in (encode_plain(levels), *(encode_bands(levels, c) for c in blosc.COMPRESSORS)):
            found = restored(data, shape)
            assert found.shape == shape
            assert found.tobytes() == levels.tobytes()

    @examples
    @given(
        shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8)),
        step=st.integers(1, 300),
        seed=st.integers(0, 2**32),
        compressor=st.sampled_from(blosc.COMPRESSORS),
    )
    def test_any_levels(self, shape: Shape, step: int, seed: int, compressor: str) -> None:
        """With few values and with all."""
        values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        levels: Levels = values // step * step if step < 256 else values
        assert restored(encode_bands(levels, compressor), shape).tobytes() == levels.tobytes()
        assert restored(encode_plain(levels), shape).tobytes() == levels.tobytes()

    @pytest.mark.parametrize("compressor", blosc.COMPRESSORS)
    def test_photograph_gets_smaller_and_stays_close_to_png(
        self, compressor: str, photograph: Levels
    ) -> None:
        height, width, channels = photograph.shape
        data = encode_bands(photograph, compressor)
        assert np.array_equal(restored(data, (height, width, channels)), photograph)
        assert len(data) < {"lz4": 1.5, "zstd": 1.2}[compressor] * len(encode_png(photograph))
        assert len(data) < 0.9 * photograph.nbytes

    def test_mask_and_levels_that_are_a_view(self) -> None:
        mask = np.zeros((64, 64, 1), np.uint8)
        mask[10:50, 20:30] = 255
        assert len(encode_bands(mask, "lz4")) < mask.nbytes // 4
        for levels in (mask, some_levels((64, 64, 3))[::2, ::-1], LEVELS.transpose(1, 0, 2)):
            height, width, channels = levels.shape
            for data in (encode_plain(levels), encode_bands(levels, "zstd")):
                assert np.array_equal(restored(data, (height, width, channels)), levels)


class TestLayout:
    def test_plain_file_is_a_header_and_the_levels(self) -> None:
        header = b"CCL0" + struct.pack(">III", *SHAPE)
        assert header + LEVELS.tobytes() == PLAIN
        assert np.shares_memory(restored(PLAIN, SHAPE), np.frombuffer(PLAIN, np.uint8))

    @pytest.mark.parametrize("shape", [SHAPE, (1100, 1000, 1), (3, PIECE_SIZE // 2, 3)])
    def test_bands_are_differences_to_the_row_above(self, shape: Shape) -> None:
        """Read by other means: numcodecs and a sum."""
        height, width, channels = shape
        levels = some_levels(shape)
        data = encode_bands(levels, "lz4")
        assert data[:HEADER_SIZE] == b"CCL1" + struct.pack(">III", *shape)
        size = width * channels
        count = max(1, PIECE_SIZE // size)
        bands = bands_of(data)
        assert len(bands) == -(-height // count)
        rows = []
        for index, band in enumerate(bands):
            target = np.empty((min(count, height - index * count), size), np.uint8)
            blosc.decompress(memoryview(band), target)
            rows.append(target)
        summed = np.cumsum(np.concatenate(rows), axis=0, dtype=np.uint8)
        assert summed.tobytes() == levels.tobytes()

    def test_a_band_holds_what_is_done_in_one_go(self) -> None:
        assert band_rows(PIECE_SIZE) == band_rows(PIECE_SIZE - 1) == band_rows(LARGEST_ROW) == 1
        assert band_rows(1) == PIECE_SIZE
        assert fits_bands((1 << 30, LARGEST_ROW // 4, 4))
        assert not fits_bands((1, LARGEST_ROW // 4 + 1, 4))

    @pytest.mark.parametrize("compressor", blosc.COMPRESSORS)
    def test_a_file_tells_its_compressor(self, compressor: str) -> None:
        data = encode_bands(LEVELS, compressor)
        assert compressor_of_bands(memoryview(data)) == compressor
        for size in range(HEADER_SIZE + 4 + blosc.HEADER_SIZE):
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                compressor_of_bands(memoryview(data[:size]))


@pytest.mark.parametrize("data", [PLAIN, BANDS], ids=["plain", "bands"])
class TestDamage:
    @pytest.mark.parametrize("field", [0, 1, 2])
    @pytest.mark.parametrize("value", [0, 1, 29, 31, 2**31, 2**32 - 1])
    def test_another_dimension_than_the_envelopes_is_refused(
        self, data: bytes, field: int, value: int
    ) -> None:
        changed = bytearray(data)
        struct.pack_into(">I", changed, 4 * (1 + field), value)
        with pytest.raises(CorruptPayload, match="corrupt payload: the image is"):
            restored(bytes(changed), SHAPE)

    @pytest.mark.parametrize("shape", [(30, 40, 3), (40, 90, 1), (40, 30, 4), (41, 30, 3)])
    def test_a_file_of_another_shape_is_refused(self, data: bytes, shape: Shape) -> None:
        with pytest.raises(CorruptPayload, match="the envelope asks for"):
            restored(data, shape)

    def test_every_cut_and_every_addition_is_refused(self, data: bytes) -> None:
        assert np.array_equal(restored(data, SHAPE), LEVELS)
        for size in range(len(PLAIN_SIGNATURE), len(data)):
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                restored(data[:size], SHAPE)
        with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
            restored(data + b"\x00", SHAPE)


class TestDamagedBands:
    SHAPE = (5, PIECE_SIZE // 2, 1)  # two rows a band
    DATA = encode_bands(some_levels(SHAPE), "lz4")

    def refuse(self, bands: list[bytes], text: str) -> None:
        with pytest.raises(CorruptPayload, match=f"corrupt payload: {text}"):
            restored(file_of(self.DATA[:HEADER_SIZE], bands), self.SHAPE)

    def test_too_few_too_many_and_exchanged_bands_are_refused(self) -> None:
        bands = bands_of(self.DATA)
        assert len(bands) == 3 and file_of(self.DATA[:HEADER_SIZE], bands) == self.DATA
        self.refuse([], "the image ends in the band of row 0")
        self.refuse(bands[:2], "the image ends in the band of row 4")
        self.refuse([*bands, bands[0]], r"\d+ bytes after the last band")
        self.refuse([bands[0], b"", bands[2]], "the image ends in the band of row 2")
        self.refuse([bands[2], bands[0], bands[1]], "Blosc data hold 524288 bytes, 1048576 exp")

    @pytest.mark.parametrize("size", [0, 1, 15, 2**31, 2**32 - 1])
    def test_wrong_size_of_a_band_is_refused(self, size: int) -> None:
        data = bytearray(self.DATA)
        struct.pack_into(">I", data, HEADER_SIZE, size)
        with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
            restored(bytes(data), self.SHAPE)

    @pytest.mark.parametrize("compressor", blosc.COMPRESSORS)
    def test_damaged_bytes_give_levels_or_are_refused(
        self, compressor: str, rng: random.Random
    ) -> None:
        valid = encode_bands(LEVELS, compressor)
        for _ in range(400):
            data = bytearray(valid)
            for _ in range(rng.choice([1, 2, 5])):
                data[rng.randrange(4, len(data))] = rng.randrange(256)
            try:
                assert restored(bytes(data), SHAPE).shape == SHAPE
            except CorruptPayload as error:
                assert str(error).startswith("corrupt payload: ")


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, LARGEST_ROW + 1, 1), "too large for bands"),
        ((1 << 20, 1 << 20, 3), "Blosc data hold"),
        ((2**32 - 1, 2**24, 4), "the image ends in the band of row 1"),
        ((2**32 - 1, 1, 1), "Blosc data hold"),
    ],
)
def test_bands_of_terabytes_are_refused_with_little_memory(shape: Shape, text: str) -> None:
    band = bytearray(blosc.compress(bytes(1024), "zstd", itemsize=1))
    struct.pack_into("<II", band, 4, LARGEST_ROW, 1 << 20)
    data = memoryview(file_of(b"CCL1" + struct.pack(">III", *shape), [bytes(band)]))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptPayload, match=text):
            check_bands(data, shape)
        with pytest.raises(CorruptPayload, match=r"bytes of levels for shape"):
            check_plain(data, shape)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10
