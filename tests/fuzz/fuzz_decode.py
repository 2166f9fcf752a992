"""What is fuzzed: each target takes any bytes, and fails where the codec breaks its word.

STUN's messages are in `fuzz_stun_messages.py`; all else here is the codec of tensors.

That is: any exception but CorruptPayload, a tensor larger than allowed, other bits the second time,
a tensor that does not survive being encoded again, or an end of the process. A target tells whether
the codec accepted the bytes. `run_target.py` runs them under atheris, `test_fuzz.py` both.

How it works. `decode` and `assembly` take what comes from the network as it is. The others get past
checksums, sizes and signatures, which chance never does: their first bytes say the shape, and what
follows becomes a file whose outer fields are right.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

from comfy_cluster.codec import CODECS, Assembly, contents_of, decode, encode
from comfy_cluster.codec.bitpack import SIGNATURE as PACKED_SIGNATURE
from comfy_cluster.codec.blocks import BLOCK_SIZE, check_blocks, decode_blocks
from comfy_cluster.codec.image_codecs import IMAGE_CODECS, ImageCodec, ImageShape
from comfy_cluster.codec.level_files import BANDS_SIGNATURE, PLAIN_SIGNATURE, band_rows
from comfy_cluster.codec.levels import Levels
from comfy_cluster.codec.png import SIGNATURE as PNG_SIGNATURE
from comfy_cluster.errors import CorruptPayload
from tests.fuzz.fuzz_stun_messages import fuzz_stun
from tests.fuzz.guarded import GuardedMemory, fill_new_memory

LIMIT = 1 << 16  # bytes of a decoded tensor
FILLS = (0x5A, 0xC3)
_SOURCE = GuardedMemory(1 << 20)
_TARGET = GuardedMemory(4 * BLOCK_SIZE)
_BLOSC_SIZE, _BLOSC_COMPRESSED_SIZE = 4, 12  # where its header has them


def fuzz_decode(data: bytes) -> bool:
    """A payload."""

    def work() -> bytes:
        payload = _SOURCE.holding(data)
        tensor = decode(payload, size_limit=LIMIT)
        assert tensor.nbytes <= max(LIMIT, len(data)), tensor.nbytes
        assert contents_of(payload).codec in CODECS
        return _octets(tensor)

    if _twice(work) is None:
        return False
    tensor = decode(data, size_limit=LIMIT)
    for name in CODECS:
        payload = encode(tensor, codec=name)
        found = decode(payload.prefix + bytes(payload.body), size_limit=max(LIMIT, len(data)))
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert _octets(found) == _octets(tensor)
    return True


def _twice(work: Callable[[], bytes]) -> bytes | None:
    """What it gives, whatever new memory holds; None: CorruptPayload."""
    results: list[bytes | str] = []
    for fill in FILLS:
        fill_new_memory(fill)
        try:
            results.append(work())
        except CorruptPayload as error:
            results.append(_text_of(error))
    first, second = results
    assert first == second
    return None if isinstance(first, str) else first


def _text_of(error: CorruptPayload) -> str:
    text = str(error)
    assert text.startswith("corrupt payload: "), text
    assert len(text) < 1000, text
    return text


def _octets(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def fuzz_assembly(data: bytes) -> bool:
    """Records of the number of a part (1 byte) and its payload, the first of which comes first."""
    records = [(record[0], record[1:]) for record in _records(data) if record]
    if not records:
        return False
    try:
        assembly = Assembly(records[0][1], size_limit=LIMIT)
        for index, payload in records:
            assembly.add(index, payload)
        whole = assembly.finish().view(-1)
    except CorruptPayload as error:
        _text_of(error)
        return False
    assert whole.nbytes <= LIMIT, whole.nbytes
    for _, payload in records:
        place = contents_of(payload).place
        assert place is not None
        part = decode(payload).view(-1)
        assert _octets(whole[place.first : place.first + part.numel()]) == _octets(part)
    return True


def _records(data: bytes) -> Iterator[bytes]:
    """Each with its size before it: 2 bytes, little-endian."""
    while len(data) >= 2:
        end = 2 + int.from_bytes(data[:2], "little")
        yield data[2:end]
        data = data[end:]


def fuzz_png(data: bytes) -> bool:
    """A PNG file with right checksums; or filtered rows, to be compressed."""
    if len(data) < 3:
        return False
    shape = (data[0] % 32 + 1, data[1] % 32 + 1, (1, 3, 4, 4)[data[2] & 3])
    are_rows, keeps_header = data[2] & 0x80, data[2] & 0x40
    header = struct.pack(">IIBBBBB", shape[1], shape[0], 8, {1: 0, 3: 2, 4: 6}[shape[2]], 0, 0, 0)
    if are_rows:
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data[3:], 1)), (b"IEND", b"")]
    else:
        chunks = list(_png_chunks(data[3:]))
        if chunks and not keeps_header:
            chunks[0] = (b"IHDR", header)
    file = PNG_SIGNATURE + b"".join(
        struct.pack(">I4s", len(content), kind)
        + content
        + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
        for kind, content in chunks
    )
    return _decode_image(IMAGE_CODECS["png"], file, shape)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What a file without signature and checksums holds."""
    while len(data) >= 8:
        size, kind = struct.unpack_from(">I4s", data)
        yield kind, data[8 : 8 + size]
        data = data[8 + size :]


def fuzz_webp(data: bytes) -> bool:
    """A VP8L bitstream behind a header that fits."""
    if len(data) < 3:
        return False
    shape = (data[0] % 64 + 1, data[1] % 64 + 1, 3 + (data[2] & 1))
    has_alpha = shape[2] == 4 and data[2] & 2
    stream = data[3:] + bytes((len(data) - 3 + 5) % 2)
    packed = (shape[1] - 1) | (shape[0] - 1) << 14 | bool(has_alpha) << 28
    chunk_size = 5 + len(stream)
    head = struct.pack(
        "<4sI4s4sIBI", b"RIFF", 12 + chunk_size, b"WEBP", b"VP8L", chunk_size, 0x2F, packed
    )
    return _decode_image(IMAGE_CODECS["webp"], head + stream, shape)


def fuzz_levels(data: bytes) -> bool:
    """A CCL0, CCL1 or CCL2 file with a right header, whose bands tell their right sizes."""
    if len(data) < 3:
        return False
    width = data[1] + 1 if data[1] < 0xF0 else BLOCK_SIZE // 8 + data[1]  # several bands
    shape = (data[0] % 32 + 1, width, data[2] % 8 + 1)
    header = struct.pack(">III", *shape)
    if data[2] & 0x80:
        return _decode_image(IMAGE_CODECS["raw8"], PLAIN_SIGNATURE + header + data[3:], shape)
    count = band_rows(shape[1] * shape[2])
    if data[2] & 0x40:
        bands = (struct.pack(">I", len(band)) + band for band in _records(data[3:]))
        file = PACKED_SIGNATURE + header + b"".join(bands)
        return _decode_image(IMAGE_CODECS["bitpack"], file, shape)
    file = BANDS_SIGNATURE + header
    for index, band in enumerate(_records(data[3:])):
        rows = max(0, min(count, shape[0] - index * count))
        band = _with_sizes(band, rows * shape[1] * shape[2])
        file += struct.pack(">I", len(band)) + band
    return _decode_image(IMAGE_CODECS["zstd"], file, shape)


def fuzz_blocks(data: bytes) -> bool:
    """Blocks that tell their right sizes; decoded between memory that nobody may touch."""
    if len(data) < 3:
        return False
    size = int.from_bytes(data[:2], "little") + (BLOCK_SIZE if data[2] & 1 else 1)
    sizes = [min(BLOCK_SIZE, size - start) for start in range(0, size, BLOCK_SIZE)]
    blocks = list(map(_with_sizes, _records(data[3:]), sizes))
    fills = iter(FILLS)

    def work() -> bytes:
        target = _TARGET.array(size, next(fills))
        check_blocks([memoryview(block) for block in blocks], size)
        # Only one block can lie before the guard: each does once.
        for index, block in enumerate(blocks):
            views = [memoryview(each) for each in blocks]
            views[index] = _SOURCE.holding(block)
            decode_blocks(views, target)
        return target.tobytes()

    return _twice(work) is not None


def _with_sizes(data: bytes, size: int) -> bytes:
    """Blosc data whose header says that they are all there, and hold `size` bytes."""
    if len(data) < 16:
        return data
    changed = bytearray(data)
    struct.pack_into("<I", changed, _BLOSC_SIZE, size)
    struct.pack_into("<I", changed, _BLOSC_COMPRESSED_SIZE, len(data))
    return bytes(changed)


def _decode_image(codec: ImageCodec, file: bytes, shape: ImageShape) -> bool:
    def restore(source: bytes) -> Levels:
        view = _SOURCE.holding(source)
        codec.check(view, shape)
        levels = codec.decode(view, shape)
        assert levels.shape == shape and levels.dtype == np.uint8
        return levels

    octets = _twice(lambda: restore(file).tobytes())
    if octets is None:
        return False
    levels = np.frombuffer(octets, np.uint8).reshape(shape)
    assert restore(codec.encode(levels)).tobytes() == octets
    return True


TARGETS: dict[str, Callable[[bytes], bool]] = {
    "decode": fuzz_decode,
    "assembly": fuzz_assembly,
    "png": fuzz_png,
    "webp": fuzz_webp,
    "levels": fuzz_levels,
    "blocks": fuzz_blocks,
    "stun": fuzz_stun,
}
