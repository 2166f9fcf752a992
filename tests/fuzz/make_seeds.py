"""Where fuzzing begins: what the codecs make of small values. `python -m tests.fuzz.make_seeds`.

Writes them to `corpus/`, each by the hash of its content, beside what the fuzzer found since. Of a
folder in which it worked, it keeps there what reaches more:
`python -m tests.fuzz.run_target TARGET -merge=1 tests/fuzz/corpus/TARGET FOLDER`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numcodecs.blosc
import numpy as np
import torch

from comfy_cluster.codec import CODECS, Place, encode
from comfy_cluster.codec.bitpack import encode_packed
from comfy_cluster.codec.blocks import BLOCK_SIZE, encode_blocks
from comfy_cluster.codec.blosc import COMPRESSORS
from comfy_cluster.codec.dtypes import DTYPES
from comfy_cluster.codec.level_files import HEADER_SIZE, encode_bands
from comfy_cluster.codec.levels import Levels
from comfy_cluster.codec.png import SIGNATURE, encode_png
from comfy_cluster.codec.webp import encode_webp
from stun_server.binding.messages import (
    AttributeType,
    encode_binding_error,
    encode_binding_request,
    encode_binding_success,
)
from tests.fuzz.fuzz_stun_messages import AS_IT_IS, FINGERPRINT, ID

CORPUS = Path(__file__).with_name("corpus")
IMAGE_SHAPES = [(5, 7, 1), (5, 7, 3), (4, 6, 4), (1, 20, 3), (20, 1, 4), (16, 16, 3)]


def levels_of(shape: tuple[int, int, int]) -> Levels:
    """Slopes, with a little noise."""
    slopes = np.add.outer(np.add.outer(np.arange(shape[0]), np.arange(shape[1])), [0, 9, 40, 90])
    noise = np.random.default_rng(1).integers(0, 3, shape)
    levels: Levels = (slopes[..., : shape[2]] + noise).astype(np.uint8)
    return levels


def payload_of(tensor: torch.Tensor, codec: str, place: Place | None = None) -> bytes:
    payload = encode(tensor, codec=codec, place=place)
    return payload.prefix + bytes(payload.body)


def decode_seeds() -> Iterator[bytes]:
    image = torch.from_numpy(levels_of((12, 10, 4))).float() / 255
    for codec in CODECS:
        yield payload_of(image[None], codec)
        yield payload_of(image[..., :3].repeat(2, 1, 1, 1), codec)
        yield payload_of(image[..., 0], codec)
        yield payload_of(torch.arange(300, dtype=torch.int32), codec)
        yield payload_of(image[None, :6], codec, Place((1, 12, 10, 4), 0, 2))
    for dtype in DTYPES.values():
        yield payload_of(torch.ones(3, dtype=dtype), "raw")
    for empty in (torch.empty(0), torch.empty(2, 0, 1 << 40), torch.tensor(7)):
        yield payload_of(empty, "lz4")


def record(data: bytes) -> bytes:
    return len(data).to_bytes(2, "little") + data


def assembly_seeds() -> Iterator[bytes]:
    image = torch.from_numpy(levels_of((12, 10, 3))).float()[None] / 255
    for tensor in (image, torch.arange(240, dtype=torch.int16).reshape(1, 12, 20)):
        row_size = tensor[0, 0].numel()
        for codec in CODECS:
            parts = [
                payload_of(tensor[:, rows], codec, Place(tuple(tensor.shape), first, 3))
                for rows, first in (
                    (slice(0, 4), 0),
                    (slice(4, 10), 4 * row_size),
                    (slice(10, 12), 10 * row_size),
                )
            ]
            yield b"".join(record(bytes([index]) + part) for index, part in enumerate(parts))


def png_seeds() -> Iterator[bytes]:
    for shape in IMAGE_SHAPES:
        levels = levels_of(shape)
        head = bytes([shape[0] - 1, shape[1] - 1])
        kind = {1: 0, 3: 1, 4: 2}[shape[2]]
        file = encode_png(levels)[len(SIGNATURE) :]
        chunks = b""
        while file:
            end = 8 + int.from_bytes(file[:4], "big")
            chunks, file = chunks + file[:end], file[end + 4 :]
        yield head + bytes([kind]) + chunks
        rows = [bytes([row % 5]) + levels[row].tobytes() for row in range(shape[0])]
        yield head + bytes([kind | 0x80]) + b"".join(rows)


def webp_seeds() -> Iterator[bytes]:
    for shape in IMAGE_SHAPES[1:]:
        head = bytes([shape[0] - 1, shape[1] - 1])
        for levels in (levels_of(shape), np.full(shape, 9, np.uint8)):
            file = encode_webp(levels)
            has_alpha = bool(struct.unpack_from("<I", file, 21)[0] >> 28 & 1)
            yield head + bytes([(shape[2] - 3) | has_alpha << 1]) + file[25:]


def levels_seeds() -> Iterator[bytes]:
    for shape in [*IMAGE_SHAPES, (30, 200, 7)]:
        levels = levels_of((shape[0], shape[1], 1)).repeat(shape[2], axis=2)
        head = bytes([shape[0] - 1, shape[1] - 1])
        if levels.nbytes < 1000:
            yield head + bytes([(shape[2] - 1) | 0x80]) + levels.tobytes()
        yield head + bytes([(shape[2] - 1) | 0x40]) + _bands_of(encode_packed(levels))
        for compressor in COMPRESSORS:
            band = encode_bands(levels, compressor)[HEADER_SIZE + 4 :]
            yield head + bytes([shape[2] - 1]) + record(band)
    large = np.zeros((17, BLOCK_SIZE // 8 + 0xF0, 1), np.uint8)  # three bands
    yield bytes([16, 0xF0, 0]) + _bands_of(encode_bands(large, "zstd"))


def _bands_of(file: bytes) -> bytes:
    bands, file = b"", file[HEADER_SIZE:]
    while file:
        end = 4 + int.from_bytes(file[:4], "big")
        bands, file = bands + record(file[4:end]), file[end:]
    return bands


def blocks_seeds() -> Iterator[bytes]:
    ramp = np.arange(9000, dtype=np.int32).tobytes()
    for compressor in COMPRESSORS:
        for size in (8, 128, 1000, 33_000):
            for itemsize in (1, 2, 8):
                memory = memoryview(ramp[:size])
                blocks = encode_blocks(memory, compressor, itemsize=itemsize)
                if blocks is not None:
                    yield (size - 1).to_bytes(2, "little") + b"\x00" + record(blocks[0])
        blocks = encode_blocks(memoryview(bytes(BLOCK_SIZE + 999)), compressor, itemsize=1)
        assert blocks is not None
        yield (999).to_bytes(2, "little") + b"\x01" + b"".join(map(record, blocks))


def stun_seeds() -> Iterator[bytes]:
    messages = [
        encode_binding_request(ID),
        encode_binding_request(ID, software="someone"),
        encode_binding_success(ID, ("192.0.2.1", 3478), software="someone"),
        encode_binding_success(ID, ("2001:db8::1", 3478)),
        encode_binding_error(ID, 420, unknown_attributes=[3, 0x24]),
    ]
    for message in messages:
        yield bytes([AS_IT_IS]) + message
        number = message[0] * 2 | message[1] >> 4  # the class
        yield bytes([number]) + message[20:]
        yield bytes([number | FINGERPRINT]) + message[20:]
    for size, number in enumerate([*AttributeType, 3, 0x24, 0xFFFF]):
        if number not in (AttributeType.FINGERPRINT, 0x08, 0x1C):
            yield bytes([FINGERPRINT]) + struct.pack(">HH", number, size) + bytes(size)
    integrity = struct.pack(">HH", 0x08, 20) + bytes(20)
    yield bytes([FINGERPRINT]) + integrity + struct.pack(">HH", 0x1C, 32) + bytes(32) + integrity


SEEDS = {
    "decode": decode_seeds,
    "assembly": assembly_seeds,
    "png": png_seeds,
    "webp": webp_seeds,
    "levels": levels_seeds,
    "blocks": blocks_seeds,
    "stun": stun_seeds,
}


def name_of(data: bytes) -> str:
    """As libFuzzer calls its files."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def main() -> None:
    numcodecs.blosc.use_threads = False  # which put blocks in any order
    for target, seeds in SEEDS.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for data in seeds():
            (folder / name_of(data)).write_bytes(data)


if __name__ == "__main__":
    main()
