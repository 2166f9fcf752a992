"""WebP: files of the simple lossless form that any reader opens, and no others."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from comfy_cluster.codec.levels import Levels
from comfy_cluster.codec.png import encode_png
from comfy_cluster.codec.webp import (
    check_webp,
    decode_webp,
    encode_webp,
    fits_webp,
    is_available,
)
from comfy_cluster.errors import CorruptPayload

examples = settings(max_examples=60, deadline=None, derandomize=True)
Shape = tuple[int, int, int]
SHAPE: Shape = (9, 14, 3)
HEADER_SIZE = 25
ALPHA_BIT = 1 << 28


def some_levels(shape: Shape, seed: int = 0) -> Levels:
    """Few values, so that there is something to compress."""
    return np.random.default_rng(seed).integers(0, 5, shape).astype(np.uint8) * 60


def pillow_webp(levels: Levels, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "WEBP", **options)
    return file.getvalue()


def restored(data: bytes, shape: Shape) -> Levels:
    check_webp(memoryview(data), shape)
    return decode_webp(memoryview(data), shape)


def assert_round_trip(levels: Levels) -> None:
    height, width, channels = levels.shape
    found = restored(encode_webp(levels), (height, width, channels))
    assert found.shape == levels.shape and found.dtype == np.uint8
    assert found.tobytes() == levels.tobytes()


def patched(data: bytes, offset: int, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into("<I", changed, offset, value)
    return bytes(changed)


def sized(data: bytes) -> bytes:
    """With sizes in the headers that are those of the data; of an even length."""
    data += b"\x00" * (len(data) % 2)
    return patched(patched(data, 4, len(data) - 8), 16, len(data) - 20)


DATA = encode_webp(some_levels(SHAPE))
(PACKED,) = struct.unpack_from("<I", DATA, 21)


def test_pillow_is_built_with_webp_here() -> None:
    assert is_available()


class TestRoundTrip:
    @pytest.mark.parametrize(
        "shape",
        [
            *((1, 1, 3), (1, 1, 4), (37, 41, 3), (900, 1000, 3)),
            *((1, 9000, 3), (9000, 1, 4), (1, 16_383, 3), (16_383, 1, 4)),
        ],
    )
    def test_shapes(self, shape: Shape) -> None:
        assert_round_trip(some_levels(shape))
        assert_round_trip(np.full(shape, 7, np.uint8))

    @examples
    @given(
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(3, 4)), st.integers(0, 2**32)
    )
    def test_noise(self, shape: Shape, seed: int) -> None:
        assert_round_trip(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))

    def test_photograph_gets_smaller_than_png(self, photograph: Levels) -> None:
        colours: Levels = np.repeat(photograph, 3 // photograph.shape[2], axis=2)
        assert_round_trip(colours)
        assert len(encode_webp(colours)) < len(encode_png(colours))

    def test_files_of_pillow_are_read_and_ours_by_pillow(self, photograph: Levels) -> None:
        tile = np.ascontiguousarray(np.broadcast_to(photograph[:50, :60], (50, 60, 3)))
        assert np.array_equal(restored(pillow_webp(tile, lossless=True), (50, 60, 3)), tile)
        with Image.open(io.BytesIO(encode_webp(tile))) as image:
            assert np.array_equal(np.asarray(image), tile)


class TestAlpha:
    def test_opaque_image_has_no_alpha_in_its_file_and_gets_it_back(self) -> None:
        levels = some_levels((20, 30, 4))
        levels[..., 3] = 255
        assert not struct.unpack_from("<I", encode_webp(levels), 21)[0] & ALPHA_BIT
        assert_round_trip(levels)

    def test_colours_beneath_transparent_pixels_stay(self) -> None:
        levels = some_levels((20, 30, 4))
        levels[..., 3] = 0
        assert levels[..., :3].any()
        assert_round_trip(levels)

    def test_mixed_alpha(self) -> None:
        levels = some_levels((20, 30, 4))
        levels[:10, :, 3] = 0
        levels[10:, :15, 3] = 255
        assert_round_trip(levels)
        levels[..., 3] = 255
        levels[19, 29, 3] = 254
        assert_round_trip(levels)

    def test_alpha_for_an_image_without_is_refused(self) -> None:
        data = encode_webp(some_levels((9, 14, 4)))
        with pytest.raises(CorruptPayload, match="the WebP image is 9x14, alpha, the envelope"):
            restored(data, SHAPE)


def test_what_fits() -> None:
    assert fits_webp((16_383, 1024, 3)) and fits_webp((1, 1, 4))
    for shape in [(16_384, 1, 3), (1, 16_384, 3), (16_383, 1025, 3), (16_383, 16_383, 4)]:
        assert not fits_webp(shape)
    assert not any(fits_webp((4, 4, channels)) for channels in (1, 2, 5, 7))


class TestDamage:
    @pytest.mark.parametrize(
        ("offset", "values"),
        [
            (0, [0, 0x5249_4658]),  # RIFF
            (4, [0, len(DATA) - 9, len(DATA) - 7, len(DATA), 2**32 - 1]),  # size
            (8, [0]),  # WEBP
            (12, [0, int.from_bytes(b"VP8 ", "little"), int.from_bytes(b"VP8X", "little")]),
            (16, [0, len(DATA) - 22, len(DATA) - 19, len(DATA), 2**32 - 1]),  # size
            (20, [0]),  # the mark, and some of the dimensions
            (21, [PACKED + 1, PACKED - 1, PACKED + (1 << 14), PACKED | ALPHA_BIT]),
            (21, [PACKED | 1 << 29, PACKED | 1 << 31, 0, 2**28 - 1]),  # version, dimensions
        ],
    )
    def test_each_wrong_field_of_the_header_is_refused(
        self, offset: int, values: list[int]
    ) -> None:
        assert restored(DATA, SHAPE).shape == SHAPE
        for value in values:
            assert patched(DATA, offset, value) != DATA
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                restored(patched(DATA, offset, value), SHAPE)

    def test_every_cut_and_every_addition_is_refused(self) -> None:
        for size in range(len(DATA)):
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                restored(DATA[:size], SHAPE)
        for more in (b"\x00", b"\x00\x00", DATA):
            with pytest.raises(CorruptPayload, match="bytes, not its own"):
                restored(DATA + more, SHAPE)

    def test_cut_files_that_admit_it_are_refused(self) -> None:
        for size in range(HEADER_SIZE + 1, len(DATA) - 4, 2):
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                restored(sized(DATA[:size]), SHAPE)

    @pytest.mark.parametrize("channels", [3, 4])
    def test_damaged_files_give_levels_or_are_refused(
        self, channels: int, rng: random.Random
    ) -> None:
        shape = (9, 14, channels)
        valid = encode_webp(some_levels(shape))
        for _ in range(1500):
            data = bytearray(valid)
            for _ in range(rng.choice([1, 1, 3])):
                data[rng.randrange(rng.choice([0, 25]), len(data))] ^= 1 << rng.randrange(8)
            try:
                assert restored(bytes(data), shape).shape == shape
            except CorruptPayload as error:
                assert str(error).startswith("corrupt payload: ")

    @pytest.mark.parametrize(
        "options",
        [
            {"lossless": False},
            {"lossless": True, "exif": b"Exif\0\0abcd"},
            {"lossless": True, "icc_profile": bytes(200)},
            {"lossless": True, "xmp": b"<x/>"},
        ],
        ids=["lossy", "exif", "profile", "xmp"],
    )
    def test_other_forms_of_webp_are_refused(self, options: dict[str, object]) -> None:
        with pytest.raises(CorruptPayload, match="not of the simple lossless form"):
            restored(pillow_webp(some_levels(SHAPE), **options), SHAPE)

    def test_animation_is_refused(self) -> None:
        frames = [Image.fromarray(some_levels(SHAPE, seed)) for seed in range(3)]
        file = io.BytesIO()
        frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
        with pytest.raises(CorruptPayload, match="not of the simple lossless form"):
            restored(file.getvalue(), SHAPE)


@pytest.mark.parametrize("side", [16_383, 16_384, 1 << 20])
def test_large_dimensions_with_little_data_are_refused_with_little_memory(side: int) -> None:
    data = patched(DATA, 21, (2**28 - 1))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
            check_webp(memoryview(data), (side, side, 3))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10


def test_pillows_process_wide_switches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI and other node packs set these."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert_round_trip(some_levels(SHAPE))
    with pytest.raises(CorruptPayload, match="WebP image data"):
        restored(sized(DATA[: len(DATA) // 2]), SHAPE)
