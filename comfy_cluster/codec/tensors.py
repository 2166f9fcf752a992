"""`encode` and `decode`: the whole way from a tensor to bytes and back.

It chooses the form; the forms are in `envelope.py`, `levels.py` and the image codecs' files. Called
by `cluster/`, on the codec pool's threads: most of the work is done without the GIL, and all that
takes long in pieces, so that it can be interrupted (`interruption.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from comfy_cluster.codec.dtypes import DTYPE_NAMES, DTYPES
from comfy_cluster.codec.envelope import (
    Envelope,
    pack_images,
    pack_raw_prefix,
    parse_envelope,
    tensor_size,
)
from comfy_cluster.codec.interruption import check_interruption
from comfy_cluster.codec.levels import (
    FLOAT_DTYPES,
    LEVEL_DTYPES,
    Levels,
    exact_levels,
    item_layout,
    levels_to_values,
    rounded_levels,
)
from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.codec.pieces import are_booleans, as_booleans, copy_of
from comfy_cluster.codec.png import SIGNATURE, check_png, decode_png, encode_png
from comfy_cluster.errors import ConfigError, CorruptPayload, UnsupportedTensor

if TYPE_CHECKING:
    from typing_extensions import Buffer

ImageShape = tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True, slots=True)
class ImageCodec:
    """One 8-bit lossless image format. A new one: a file with these functions, a line below."""

    name: str
    signature: bytes
    """The first bytes of each of its files: how `decode` knows it."""
    encode: Callable[[Levels], bytes]
    """Levels [H, W, C] to a file."""
    check: Callable[[memoryview, ImageShape], None]
    """`CorruptPayload` if the file does not declare that shape; before anything is allocated."""
    decode: Callable[[memoryview, ImageShape], Levels]
    """A file to levels [H, W, C]; `CorruptPayload` if it is broken."""


IMAGE_CODECS = {"png": ImageCodec("png", SIGNATURE, encode_png, check_png, decode_png)}
CODEC_CHOICES = ("auto", "raw", *IMAGE_CODECS)
PRECISION_CHOICES = ("exact", "uint8")


def encode(
    tensor: torch.Tensor,
    *,
    codec: str = "auto",
    precision: str = "exact",
    is_image: bool = False,
) -> EncodedPayload:
    """Encode a tensor of any shape (at most 8 dimensions) and of a dtype in `dtypes.py`.

    `codec`: "auto" sends 8-bit images ([B,H,W,C] with 1, 3 or 4 channels, [B,H,W] or [H,W]; uint8,
    or float32 with every value exactly k/255) as PNG where that is smaller, all else raw; "png"
    does so even where it is not smaller; "raw" never does.

    `precision`: "exact" gives the same bits at the other end. "uint8" rounds and clips float images
    and masks to 8 bits (NaN becomes 0; alpha stays), but only with `is_image=True`: no caller
    that does not know what a tensor is can spoil a latent. The dtype is kept.

    A raw payload's body is the memory of a contiguous CPU tensor itself (`EncodedPayload`).

    Raises `UnsupportedTensor`, or `ConfigError` for an unknown codec or precision.
    """
    _check_choice("CODEC", codec, CODEC_CHOICES)
    _check_choice("IMAGE_PRECISION", precision, PRECISION_CHOICES)
    values = _plain_tensor(tensor)
    if values.dtype not in LEVEL_DTYPES or item_layout(values.shape) is None:
        return _encode_raw(values)
    if precision == "uint8" and is_image and values.dtype in FLOAT_DTYPES:
        levels = rounded_levels(values)
        if codec == "raw":
            return _encode_raw(levels_to_values(levels, values.dtype))
        return _encode_levels(levels, values, codec, size_limit=None) or _encode_raw(values)
    if codec == "raw" or (exact := exact_levels(values)) is None:
        return _encode_raw(values)
    size_limit = values.nbytes if codec == "auto" else None
    return _encode_levels(exact, values, codec, size_limit=size_limit) or _encode_raw(values)


def _check_choice(setting: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        variable = f"COMFY_CLUSTER_{setting}"
        raise ConfigError(
            f"{variable}={value!r} is unknown: choose one of {', '.join(choices)}",
            variable=variable,
            value=value,
        )


def _plain_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, contiguous, on the CPU, without gradient; copied only where needed."""
    if not isinstance(tensor, torch.Tensor):
        raise UnsupportedTensor(f"cannot encode {type(tensor).__name__}: it is not a torch.Tensor")
    if tensor.dtype not in DTYPE_NAMES:
        raise UnsupportedTensor(
            f"cannot encode dtype {tensor.dtype}: convert it to one of {', '.join(DTYPES)}"
        )
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        raise UnsupportedTensor(
            f"cannot encode a tensor of layout {tensor.layout} on {tensor.device}: "
            "only dense tensors with data travel"
        )
    try:
        tensor_size(tensor.shape, tensor.itemsize)
    except ValueError as error:
        raise UnsupportedTensor(f"cannot encode this tensor: {error}") from None
    if tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_neg():
        return tensor.detach()
    return copy_of(tensor)


def _encode_raw(values: torch.Tensor) -> EncodedPayload:
    prefix = pack_raw_prefix(values.shape, DTYPE_NAMES[values.dtype], values.nbytes)
    octets = values.reshape(-1).view(torch.uint8)
    if values.dtype == torch.bool and not are_booleans(octets):
        octets = as_booleans(octets).view(torch.uint8)
    return EncodedPayload(prefix, octets.numpy().data, "raw")


def _encode_levels(
    levels: torch.Tensor, values: torch.Tensor, codec: str, *, size_limit: int | None
) -> EncodedPayload | None:
    """Encode as images, one file an item; None as soon as that is no smaller than `size_limit`.

    Each item must stay under its share of the limit on average so far: noise is given up after the
    first image.
    """
    layout = item_layout(values.shape)
    assert layout is not None
    image_codec = IMAGE_CODECS["png" if codec == "auto" else codec]
    images: list[bytes] = []
    total = 0
    for item in levels.reshape(layout).numpy():
        check_interruption()
        images.append(image_codec.encode(item))
        total += len(images[-1])
        if size_limit is not None and total * layout[0] >= size_limit * len(images):
            return None
    prefix, body = pack_images(values.shape, DTYPE_NAMES[values.dtype], images)
    return EncodedPayload(prefix, memoryview(body), image_codec.name)


def decode(data: Buffer, *, size_limit: int | None = None) -> torch.Tensor:
    """Decode a payload into a contiguous, writable CPU tensor that owns or keeps alive its memory.

    A raw payload in writable, aligned memory is not copied: the tensor is a view of `data`. Other
    payloads are checked first, then the tensor is allocated once; `size_limit` (bytes of that
    tensor) bounds it: a small PNG may hold an image that is 1000 times larger.

    Raises `CorruptPayload` with what is wrong for anything that `encode` does not make.
    """
    envelope = parse_envelope(memoryview(data).cast("B"))
    if (dtype := DTYPES.get(envelope.dtype)) is None:
        raise CorruptPayload(f"corrupt payload: unknown dtype {envelope.dtype!r}")
    try:
        size = tensor_size(envelope.shape, dtype.itemsize)
    except ValueError as error:
        raise CorruptPayload(f"corrupt payload: {error}") from None
    if envelope.data is not None:
        return _decode_raw(envelope.data, envelope.shape, dtype, size)
    if size_limit is not None and size > size_limit:
        raise CorruptPayload(f"corrupt payload: a tensor of {size} bytes, {size_limit} allowed")
    return _decode_items(envelope, dtype)


def _decode_raw(
    data: memoryview, shape: tuple[int, ...], dtype: torch.dtype, size: int
) -> torch.Tensor:
    if len(data) != size:
        raise CorruptPayload(
            f"corrupt payload: {len(data)} bytes of data, {list(shape)} {dtype} takes {size}"
        )
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    # torch warns about read-only memory, because it would write to it all the same.
    octets = torch.frombuffer(bytearray(data) if data.readonly else data, dtype=torch.uint8)
    if octets.data_ptr() % dtype.itemsize:
        octets = copy_of(octets)
    if dtype == torch.bool and not are_booleans(octets):
        raise CorruptPayload("corrupt payload: a bool that is neither 0 nor 1")
    return octets.view(dtype).reshape(shape)


def _decode_items(envelope: Envelope, dtype: torch.dtype) -> torch.Tensor:
    images = envelope.images
    assert images is not None
    layout = item_layout(envelope.shape)
    if layout is None or dtype not in LEVEL_DTYPES:
        raise CorruptPayload(
            f"corrupt payload: {list(envelope.shape)} {dtype} cannot hold 8-bit images"
        )
    if len(images) != layout[0]:
        raise CorruptPayload(f"corrupt payload: {len(images)} images for {layout[0]} items")
    shape = layout[1:]
    codecs = [_codec_of(image) for image in images]
    for codec, image in zip(codecs, images, strict=True):
        check_interruption()
        codec.check(image, shape)
    levels = np.empty(layout, dtype=np.uint8)
    for item, codec, image in zip(levels, codecs, images, strict=True):
        check_interruption()
        item[...] = codec.decode(image, shape)
    return levels_to_values(torch.from_numpy(levels).reshape(envelope.shape), dtype)


def _codec_of(image: memoryview) -> ImageCodec:
    for codec in IMAGE_CODECS.values():
        if image[: len(codec.signature)] == codec.signature:
            return codec
    raise CorruptPayload(f"corrupt payload: unknown image format {bytes(image[:8])!r}")
