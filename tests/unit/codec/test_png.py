"""PNG: files that any reader opens, and hostile files that are refused before they grow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from comfy_cluster.codec.levels import Levels
from comfy_cluster.codec.png import SIGNATURE, check_png, decode_png, encode_png
from comfy_cluster.errors import CorruptPayload

SHAPE = (5, 7, 3)


def random_levels(shape: tuple[int, int, int], seed: int = 0) -> Levels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pillow_png(levels: Levels, **options: object) -> bytes:
    file = io.BytesIO()
    squeezed = levels[..., 0] if levels.shape[2] == 1 else levels
    Image.fromarray(squeezed).save(file, "PNG", **options)
    return file.getvalue()


def decode(data: bytes, shape: tuple[int, int, int]) -> Levels:
    check_png(memoryview(data), shape)
    return decode_png(memoryview(data), shape)


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def header(width: int, height: int, depth: int = 8, color: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))


def rows(shape: tuple[int, int, int] = SHAPE, filter_type: int = 0) -> bytes:
    height, width, channels = shape
    return height * (bytes([filter_type]) + bytes(width * channels))


def file_of(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks)


IHDR = header(7, 5)
IDAT = chunk(b"IDAT", zlib.compress(rows()))
IEND = chunk(b"IEND", b"")


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 1), (5, 7, 3), (64, 1, 4), (1, 300, 4)])
def test_pillow_reads_what_we_write_and_we_read_both(shape: tuple[int, int, int]) -> None:
    levels = random_levels(shape)
    data = encode_png(levels)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image).reshape(shape), levels)
    assert np.array_equal(decode(data, shape), levels)
    assert np.array_equal(decode(pillow_png(levels), shape), levels)


def test_photograph_survives_and_stays_close_to_pillows_size(photograph: Levels) -> None:
    data = encode_png(photograph)
    height, width, channels = photograph.shape
    assert np.array_equal(decode(data, (height, width, channels)), photograph)
    assert len(data) < 1.1 * len(pillow_png(photograph, compress_level=1))


def test_image_data_in_many_chunks() -> None:
    levels = random_levels((300, 300, 3))
    data = pillow_png(levels)
    assert data.count(b"IDAT") > 2
    assert np.array_equal(decode(data, (300, 300, 3)), levels)


def test_smallest_file_is_accepted() -> None:
    assert not decode(file_of(IHDR, IDAT, IEND), SHAPE).any()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not a PNG"),
        (b"GIF89a" + IHDR, "not a PNG"),
        (SIGNATURE, "no IEND"),
        (file_of(IDAT, IEND), "b'IDAT' after b''"),
        (file_of(IHDR, IEND), "b'IEND' after b'IHDR'"),
        (file_of(IHDR, IHDR, IDAT, IEND), "b'IHDR' after b'IHDR'"),
        (file_of(IHDR, IDAT), "no IEND"),
        (file_of(IHDR, IDAT, IEND, IEND), "b'IEND' after b'IEND'"),
        (file_of(IHDR, IDAT, IEND) + b"x", "ends inside a chunk"),
        (file_of(IHDR, IDAT, IEND)[:-1], "ends inside"),
        (file_of(header(8, 5), IDAT, IEND), r"PNG header is \(8, 5, 8, 2"),
        (file_of(header(7, 5, depth=16), IDAT, IEND), "PNG header is"),
        (file_of(header(7, 5, color=3), IDAT, IEND), "PNG header is"),
        (file_of(header(7, 5, color=6), IDAT, IEND), "PNG header is"),
        (file_of(header(7, 5, interlace=1), IDAT, IEND), "PNG header is"),
        (file_of(chunk(b"IHDR", b"123"), IDAT, IEND), "IHDR of 3 bytes"),
        (file_of(IHDR, IDAT[:-1] + b"\x00", IEND), "wrong checksum"),
        (file_of(IHDR, chunk(b"zTXt", b"bomb"), IDAT, IEND), "b'zTXt' after"),
        (file_of(IHDR, chunk(b"iCCP", b"bomb"), IDAT, IEND), "b'iCCP' after"),
        (file_of(IHDR, IDAT, chunk(b"iTXt", b"bomb"), IEND), "b'iTXt' after"),
        (file_of(IHDR, chunk(b"acTL", bytes(8)), IDAT, IEND), "b'acTL' after"),
        (file_of(IHDR, chunk(b"IDAT", b""), IEND), "0 bytes cannot hold"),
        (file_of(IHDR, chunk(b"IDAT", b"no zlib"), IEND), "PNG image data"),
        (file_of(IHDR, chunk(b"IDAT", zlib.compress(rows())[:-9]), IEND), "PNG image data"),
        (file_of(IHDR, chunk(b"IDAT", zlib.compress(rows()[:-1])), IEND), "PNG image data"),
        (file_of(IHDR, chunk(b"IDAT", zlib.compress(rows(filter_type=9))), IEND), "PNG image"),
    ],
)
def test_hostile_file_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(CorruptPayload, match=text):
        decode(data, SHAPE)


def test_file_that_cannot_hold_the_image_is_refused_before_it_is_decoded() -> None:
    shape = (60_000, 60_000, 3)
    data = file_of(header(60_000, 60_000), chunk(b"IDAT", zlib.compress(bytes(1000))), IEND)
    with pytest.raises(CorruptPayload, match=r"bytes cannot hold a PNG image of shape"):
        check_png(memoryview(data), shape)


def test_pillows_process_wide_switches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI and other node packs set these."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1)
    levels = random_levels((9, 9, 4))
    assert np.array_equal(decode(encode_png(levels), levels.shape), levels)
    cut = file_of(IHDR, chunk(b"IDAT", zlib.compress(rows())[:-9]), IEND)
    with pytest.raises(CorruptPayload, match="PNG image data"):
        decode(cut, SHAPE)
