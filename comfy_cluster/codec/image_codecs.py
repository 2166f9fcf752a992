"""The 8-bit lossless image forms, by name, and which of all codecs this instance can decode.

Called by `tensors.py` and by who must know what peers may be sent. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from comfy_cluster import fastpath
from comfy_cluster.codec import bitpack, blosc, level_files, png, webp
from comfy_cluster.errors import CorruptPayload

if TYPE_CHECKING:
    from comfy_cluster.codec.levels import Levels

ImageShape = tuple[int, int, int]  # height, width, channels
CODECS = ("raw", "raw8", "bitpack", "lz4", "zstd", "png", "webp")
BLOCK_CODECS = blosc.COMPRESSORS  # those that also make other tensors smaller
# What an instance can decode that does not say it: docs/protocol.md, ANNOUNCE.
UNANNOUNCED_CODECS = frozenset({"raw", "png"})


@dataclass(frozen=True, slots=True)
class ImageCodec:
    """One form of an 8-bit image. A new one: a file with these functions, a line below."""

    name: str
    signature: bytes
    """The first bytes of each of its files: how `decode` knows it."""
    fits: Callable[[ImageShape], bool]
    """Whether its files can hold such an image."""
    encode: Callable[[Levels], bytes]
    """Levels [H, W, C] to a file."""
    check: Callable[[memoryview, ImageShape], None]
    """`CorruptPayload` if the file does not declare that shape; before anything is allocated."""
    decode: Callable[[memoryview, ImageShape], Levels]
    """A file to levels [H, W, C], which may be a view of it; `CorruptPayload` if it is broken."""


def _bands(compressor: str) -> ImageCodec:
    return ImageCodec(
        name=compressor,
        signature=level_files.BANDS_SIGNATURE,
        fits=level_files.fits_bands,
        encode=partial(level_files.encode_bands, compressor=compressor),
        check=level_files.check_bands,
        decode=level_files.decode_bands,
    )


IMAGE_CODECS = {
    codec.name: codec
    for codec in (
        ImageCodec(
            name="raw8",
            signature=level_files.PLAIN_SIGNATURE,
            fits=lambda shape: True,
            encode=level_files.encode_plain,
            check=level_files.check_plain,
            decode=level_files.decode_plain,
        ),
        ImageCodec(
            name="bitpack",
            signature=bitpack.SIGNATURE,
            fits=bitpack.fits_packed,
            encode=bitpack.encode_packed,
            check=bitpack.check_packed,
            decode=bitpack.decode_packed,
        ),
        *map(_bands, blosc.COMPRESSORS),
        ImageCodec(
            name="png",
            signature=png.SIGNATURE,
            fits=png.fits_png,
            encode=png.encode_png,
            check=png.check_png,
            decode=png.decode_png,
        ),
        ImageCodec(
            name="webp",
            signature=webp.SIGNATURE,
            fits=webp.fits_webp,
            encode=webp.encode_webp,
            check=webp.check_webp,
            decode=webp.decode_webp,
        ),
    )
}


@cache
def available_codecs() -> tuple[str, ...]:
    """The codecs that work here, in the order of `CODECS`: to encode and to decode."""
    missing = set() if blosc.is_available() else set(blosc.COMPRESSORS)
    if not fastpath.IS_COMPILED:  # numpy takes thirty times as long, and peers could not know
        missing.add("bitpack")
    if not webp.is_available():
        missing.add("webp")
    return tuple(name for name in CODECS if name not in missing)


def codec_of_file(file: memoryview) -> ImageCodec:
    """By signature; `CorruptPayload` where it is none of ours."""
    for codec in IMAGE_CODECS.values():
        if file[: len(codec.signature)] == codec.signature:
            return codec
    raise CorruptPayload(f"corrupt payload: unknown image format {bytes(file[:8])!r}")


def name_of_file(file: memoryview) -> str:
    """The codec that made a file; `CorruptPayload` where it is none of ours."""
    codec = codec_of_file(file)
    if codec.signature == level_files.BANDS_SIGNATURE:  # of several codecs
        return level_files.compressor_of_bands(file)
    return codec.name
