"""Whatever the bytes are: a tensor or CorruptPayload, and memory in proportion to the input."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.codec import (
    CODECS,
    Assembly,
    EncodedPayload,
    Place,
    contents_of,
    decode,
    encode,
    parts_of,
)
from comfy_cluster.codec.blosc import compress
from comfy_cluster.codec.png import SIGNATURE
from comfy_cluster.errors import CorruptPayload

examples = settings(max_examples=300, deadline=None, derandomize=True)
MIB = 1 << 20
# Bytes that Python and numpy may allocate for one byte of input, before anything is decoded.
PARSE_FACTOR = 16


LIMIT = 4 * MIB


def octets(payload: EncodedPayload) -> bytes:
    return payload.prefix + bytes(payload.body)


def samples() -> list[bytes]:
    tensors = [
        torch.zeros(2, 40, 40, 3),
        torch.arange(120, dtype=torch.uint8).reshape(1, 5, 8, 3),
        torch.randn(3, 4, 5),
        torch.tensor(True),
        torch.empty(0, 3, dtype=torch.bfloat16),
    ]
    payloads = [encode(tensor, codec="png") for tensor in tensors]
    slopes = torch.arange(30)[:, None, None] + torch.arange(20)[:, None] + 9 * torch.arange(4)
    image = slopes[None].repeat(2, 1, 1, 1).float() / 255
    payloads += [encode(image, codec=name) for name in CODECS]
    latent = torch.arange(400, dtype=torch.float16).reshape(4, 100)
    payloads += [encode(latent, codec=name) for name in ("lz4", "zstd")]
    payloads += [encode(latent, codec="zstd", place=Place((2, 4, 100), 400, 2))]
    assert {payload.codec for payload in payloads} == set(CODECS)
    return [octets(payload) for payload in payloads]


SAMPLES = samples()


def decode_or_refuse(data: bytes) -> None:
    try:
        contents_of(data)
        tensor = decode(data, size_limit=LIMIT)
        assert tensor.nbytes <= max(LIMIT, len(data))
        assembly = Assembly(data, size_limit=LIMIT)
        assembly.add(0, data)
        assembly.finish()
    except CorruptPayload as error:
        assert str(error).startswith("corrupt payload: ")


@examples
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    decode_or_refuse(data)


KEYS = [
    *("shape", "dtype", "data", "images", "blocks", "compressed", "data_size", "pad"),
    *("whole", "first", "parts"),
]


@examples
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(),
    lambda children: st.lists(children) | st.dictionaries(
        st.sampled_from(KEYS),
        children | st.sampled_from(["uint8", "float32", "bool"]),
    ),
    max_leaves=12,
))  # fmt: skip
def test_random_msgpack(value: object) -> None:
    decode_or_refuse(msgpack.packb(value))


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_mutated_payloads(index: int, rng: random.Random) -> None:
    valid = SAMPLES[index]
    for _ in range(1500):
        data = bytearray(valid)
        for _ in range(rng.choice([1, 1, 2, 8])):
            position = rng.randrange(len(data))
            mutation = rng.randrange(4)
            if mutation == 0:
                data[position] = rng.randrange(256)
            elif mutation == 1:
                data[position] ^= 1 << rng.randrange(8)
            elif mutation == 2:
                del data[position : position + rng.choice([1, 1, 4, 50])]
            else:
                data[position:position] = rng.randbytes(rng.choice([1, 1, 4, 50]))
            if not data:
                break
        decode_or_refuse(bytes(data))


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_every_cut_and_every_addition_is_refused(index: int) -> None:
    valid = SAMPLES[index]
    decode(valid)
    for size in range(len(valid)):
        with pytest.raises(CorruptPayload):
            decode(valid[:size])
    with pytest.raises(CorruptPayload, match="1 bytes after the end"):
        decode(valid + b"\x00")


def png_of(width: int, height: int, compressed: bytes, *, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        [SIGNATURE, chunk(b"IHDR", header), extra, chunk(b"IDAT", compressed), chunk(b"IEND", b"")]
    )


def image_payload(shape: list[int], image: bytes) -> bytes:
    fields = {"shape": shape, "dtype": "float32", "images": [image], "compressed": True}
    packed: bytes = msgpack.packb(fields)
    return packed


def blocks_payload(shape: list[int], blocks: list[bytes], **place: object) -> bytes:
    fields = {"shape": shape, "dtype": "uint8", "blocks": blocks, "compressed": True, **place}
    packed: bytes = msgpack.packb(fields)
    return packed


def blosc_of(declared: int, block_size: int) -> bytes:
    """Data that declare more than they hold."""
    data = bytearray(compress(bytes(MIB), "zstd", itemsize=1))
    struct.pack_into("<II", data, 4, declared, block_size)
    return bytes(data)


def bands_payload(shape: list[int], *bands: bytes) -> bytes:
    parts = [b"CCL1", struct.pack(">III", *shape[1:])]
    for band in bands:
        parts += [struct.pack(">I", len(band)), band]
    return image_payload(shape, b"".join(parts))


def webp_of(width: int, height: int) -> bytes:
    """A header and nothing to fill the image with."""
    packed = (width - 1) | (height - 1) << 14
    return struct.pack("<4sI4s4sIBI", b"RIFF", 22, b"WEBP", b"VP8L", 9, 0x2F, packed) + bytes(5)


ZEROS = zlib.compress(bytes(20 * MIB), 9)
EMPTY_CHUNK = struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
BOMBS = {
    "deep arrays": b"\x91" * MIB,
    "deep maps": b"\x81" * MIB,
    "deep shape": b"\x81\xa5shape" + b"\x91" * MIB,
    "array of 4 G": b"\x82\xa6images\xdd\xff\xff\xff\xff" + bytes(MIB),
    "map of 4 G": b"\xdf\xff\xff\xff\xff" + bytes(MIB),
    "empty maps": b"\x81\xa6images\xdd\x00\x10\x00\x00" + b"\x80" * MIB,
    "empty images": b"\x81\xa6images\xdd" + struct.pack(">I", MIB // 2) + b"\xc4\x00" * (MIB // 2),
    "most images": b"\x81\xa6images\xdd" + struct.pack(">I", MIB // 16) + b"\xc4\x00" * (MIB // 2),
    "many keys": b"\xde\xff\xff" + b"\xa1a\x00" * 65535,
    "long key": b"\x81\xdb\x7f\xff\xff\xff" + b"a" * MIB,
    "terabytes of data": msgpack.packb(
        {"shape": [1 << 40], "dtype": "float32", "compressed": False, "data_size": 1 << 42}
    ),
    "png larger than announced": image_payload([1, 4, 4, 3], png_of(30_000, 30_000, ZEROS)),
    "png smaller than announced": image_payload([1, 30_000, 30_000, 3], png_of(4, 4, ZEROS)),
    "png too small for itself": image_payload(
        [1, 60_000, 60_000, 3], png_of(60_000, 60_000, ZEROS)
    ),
    "compressed text": image_payload(
        [1, 4, 4, 3],
        png_of(
            4, 4, ZEROS, extra=struct.pack(">I", len(ZEROS) + 3) + b"zTXtk\0\0" + ZEROS + bytes(4)
        ),
    ),
    "empty blocks": b"\x81\xa6blocks\xdd" + struct.pack(">I", MIB // 2) + b"\xc4\x00" * (MIB // 2),
    "most blocks": b"\x81\xa6blocks\xdd" + struct.pack(">I", MIB // 16) + b"\xc4\x00" * (MIB // 2),
    "blocks of 4 G": b"\x82\xa6blocks\xdd\xff\xff\xff\xff" + bytes(MIB),
    "many blocks": blocks_payload([1 << 36], [bytes(16)] * (1 << 16)),
    "one block of gigabytes": blocks_payload([3 << 30], [blosc_of(3 << 30, 3 << 30)]),
    "gigabytes in one block too few": blocks_payload([1 << 30], [blosc_of(MIB, MIB)] * 1023),
    "blocks of nothing": blocks_payload([0, 1 << 50], [bytes(16)]),
    "bands of a row of gigabytes": bands_payload([1, 1, 1 << 30, 3], blosc_of(3 << 30, MIB)),
    "bands of terabytes": bands_payload([1, 1 << 20, 1 << 20, 1], blosc_of(MIB, MIB)),
    "bands of 4 G rows": bands_payload([1, 2**32 - 1, 1, 1], blosc_of(MIB, MIB)),
    "levels of terabytes": image_payload(
        [1, 1 << 20, 1 << 20, 1], b"CCL0" + struct.pack(">III", 1 << 20, 1 << 20, 1)
    ),
    "webp of gigabytes": image_payload([1, 16_383, 16_383, 4], webp_of(16_383, 16_383)),
    "webp larger than announced": image_payload([1, 4, 4, 3], webp_of(16_383, 16_383)),
    "webp smaller than announced": image_payload([1, 4096, 4096, 4], webp_of(4, 4)),
    "a place in exabytes": blocks_payload(
        [MIB], [blosc_of(MIB, MIB)[:-1]], whole=[1 << 60], first=0, parts=2
    ),
    "empty chunks": image_payload(
        [1, 4, 4, 3], png_of(4, 4, b"", extra=EMPTY_CHUNK * (MIB // 12))
    ),
    "pickle": b"\x80\x04\x95" + bytes(100),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BOMBS))
def test_bomb_is_refused_with_little_memory(name: str) -> None:
    data = memoryview(BOMBS[name])
    with pytest.raises(CorruptPayload):
        decode(data)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptPayload):
            decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < PARSE_FACTOR * len(data) + 64 * 1024


WHOLE_BOMBS = {
    "of exabytes": [1 << 60],
    "of more than can be addressed": [1 << 40, 1 << 40],
    "of nothing, but wide": [0, 1 << 62, 1 << 62],
    "one byte too large": [LIMIT + 1],
}


@pytest.mark.parametrize("name", WHOLE_BOMBS)
def test_part_of_a_huge_whole_is_refused_with_little_memory(name: str) -> None:
    whole = WHOLE_BOMBS[name]
    block = compress(bytes(MIB), "zstd", itemsize=1)
    data = blocks_payload([MIB], [block], whole=whole, first=0, parts=2)
    assert not decode(data).any()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptPayload, match=r"too large to address|4194304 allowed"):
            Assembly(data, size_limit=LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


@pytest.mark.parametrize("name", ["bitpack", "lz4", "zstd", "webp", "png"])
def test_size_limit_holds_for_what_compresses_best(name: str) -> None:
    image = torch.zeros(1, 2000, 1000, 3, dtype=torch.uint8)
    data = octets(encode(image, codec=name))
    assert len(data) < image.nbytes / (30 if name == "bitpack" else 100)
    assert torch.equal(decode(data, size_limit=image.nbytes), image)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptPayload, match="a tensor of 6000000 bytes, 5999999 allowed"):
            decode(data, size_limit=image.nbytes - 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


def test_data_beyond_the_image_are_not_inflated() -> None:
    """20 MiB of zeros follow a 4 x 4 image in its compressed stream: only the image is made."""
    data = image_payload([1, 4, 4, 3], png_of(4, 4, ZEROS))
    tracemalloc.start()
    try:
        assert not decode(data).any()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB


def test_decoding_leaves_no_memory_behind() -> None:
    image = torch.from_numpy(np.indices((200, 200)).sum(0).astype(np.uint8))
    payload = encode(image, codec="png")
    data = payload.prefix + bytes(payload.body)
    decode(data)
    tracemalloc.start()
    try:
        for _ in range(20):
            decode(data)
            with pytest.raises(CorruptPayload):
                decode(data[:-1])
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current < 100_000


def test_a_few_bytes_that_claim_gigabytes_are_refused() -> None:
    file = encode(torch.zeros(1, 4096, 4096, 3, dtype=torch.uint8), codec="webp")
    image = bytes(file.body)[-34:]
    fields = {
        "shape": [8, 4096, 4096, 3],
        "dtype": "float64",
        "images": [image] * 8,
        "compressed": True,
    }
    with pytest.raises(CorruptPayload, match=r"\d+ bytes cannot hold a tensor of 3221225472 bytes"):
        decode(msgpack.packb(fields))


def test_a_first_part_too_small_for_its_whole_is_refused_before_memory_is_taken() -> None:
    place = Place((1 << 40,), 0, 256)
    payload = encode(torch.zeros(1000), codec="zstd", place=place)
    with pytest.raises(CorruptPayload, match=r"256 parts of \[1000\] are no \[1099511627776\]"):
        Assembly(payload.prefix + bytes(payload.body))


def test_a_black_image_of_gigabytes_goes_in_parts_that_are_taken() -> None:
    black = torch.zeros(1, 1, 1, 1).expand(64, 1024, 1024, 3)
    parts = parts_of(black)
    for part in (parts[0], parts[-1]):
        for codec in CODECS:
            payload = encode(part.values, codec=codec, place=part.place)
            decode(payload.prefix + bytes(payload.body))
