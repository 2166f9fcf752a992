"""The table of image forms: names, signatures, and what each keeps and refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from comfy_cluster import fastpath
from comfy_cluster.codec.image_codecs import (
    BLOCK_CODECS,
    CODECS,
    IMAGE_CODECS,
    UNANNOUNCED_CODECS,
    ImageShape,
    available_codecs,
    codec_of_file,
    name_of_file,
)
from comfy_cluster.codec.interruption import PIECE_SIZE
from comfy_cluster.codec.levels import Levels
from comfy_cluster.errors import CorruptPayload

SHAPES: list[ImageShape] = [
    *((1, 1, 1), (1, 777, 1), (777, 1, 1), (64, 50, 1), (2, PIECE_SIZE, 1), (1500, 900, 1)),
    *((64, 50, 2), (1, 99, 2), (64, 50, 7), (99, 1, 7)),
    *((1, 1, 3), (1, 777, 3), (777, 1, 3), (64, 50, 3), (700, 900, 3)),
    *((1, 1, 4), (1, 777, 4), (777, 1, 4), (64, 50, 4), (700, 900, 4)),
]


def some_levels(shape: ImageShape) -> Levels:
    """Slopes with a little noise."""
    height, width, channels = shape
    slopes = np.arange(height)[:, None, None] + 2 * np.arange(width)[:, None] + np.arange(channels)
    noise = np.random.default_rng(5).integers(0, 4, shape)
    return (slopes + noise).astype(np.uint8)


def restored(file: bytes, shape: ImageShape) -> Levels:
    view = memoryview(file)
    codec = codec_of_file(view)
    codec.check(view, shape)
    return codec.decode(view, shape)


def test_every_codec_but_raw_has_an_image_form_and_works_here() -> None:
    assert list(IMAGE_CODECS) == [name for name in CODECS if name != "raw"]
    assert all(codec.name == name for name, codec in IMAGE_CODECS.items())
    if fastpath.IS_COMPILED:
        assert available_codecs() == CODECS
    assert {*BLOCK_CODECS, *UNANNOUNCED_CODECS} < set(CODECS)


def test_the_slow_engine_offers_no_bit_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastpath, "IS_COMPILED", False)
    available_codecs.cache_clear()
    try:
        assert set(CODECS) - set(available_codecs()) == {"bitpack"}
    finally:
        available_codecs.cache_clear()


def test_no_signature_begins_with_another() -> None:
    signatures = {codec.signature for codec in IMAGE_CODECS.values()}
    assert len(signatures) == 5  # LZ4 and Zstandard share one
    for one, other in itertools.permutations(signatures, 2):
        assert not one.startswith(other)


@pytest.mark.parametrize("name", IMAGE_CODECS)
class TestEach:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_levels_of_every_shape_that_fits_come_back(self, name: str, shape: ImageShape) -> None:
        codec = IMAGE_CODECS[name]
        if not codec.fits(shape):
            assert shape[2] in {"png": (2, 7), "webp": (1, 2, 7)}[name]
            return
        levels = some_levels(shape)
        file = codec.encode(levels)
        found = restored(file, shape)
        assert found.shape == shape and found.dtype == np.uint8
        assert found.tobytes() == levels.tobytes()

    def test_photograph_comes_back_and_is_known_by_its_file(
        self, name: str, photograph: Levels
    ) -> None:
        colours: Levels = np.repeat(photograph, 3 // photograph.shape[2], axis=2)
        height, width, channels = colours.shape
        file = IMAGE_CODECS[name].encode(colours)
        assert name_of_file(memoryview(file)) == name
        assert codec_of_file(memoryview(file)).signature == IMAGE_CODECS[name].signature
        assert np.array_equal(restored(file, (height, width, channels)), colours)

    def test_file_of_another_form_or_shape_is_refused(self, name: str) -> None:
        """Whatever signature is put before it."""
        shape = (20, 30, 3)
        file = IMAGE_CODECS[name].encode(some_levels(shape))
        signature = IMAGE_CODECS[name].signature
        for other in IMAGE_CODECS.values():
            if other.signature == signature:
                continue
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                restored(other.signature + file[len(other.signature) :], shape)
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                restored(other.signature + file, shape)
        for wrong in ((30, 20, 3), (20, 30, 1), (20, 31, 3), (1, 1, 1)):
            with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
                restored(file, wrong)


@pytest.mark.parametrize("file", [b"", b"C", b"CCL", b"CCL9" + bytes(99), b"\xff\xd8\xff\xe0JFIF"])
def test_unknown_formats_are_refused(file: bytes) -> None:
    with pytest.raises(CorruptPayload, match="corrupt payload: unknown image format"):
        codec_of_file(memoryview(file))
    with pytest.raises(CorruptPayload, match="corrupt payload: unknown image format"):
        name_of_file(memoryview(file))


def test_name_of_a_file_that_ends_early_is_refused() -> None:
    file = IMAGE_CODECS["zstd"].encode(some_levels((20, 30, 3)))
    for size in range(4, 36):
        with pytest.raises(CorruptPayload, match=r"^corrupt payload: "):
            name_of_file(memoryview(file[:size]))
