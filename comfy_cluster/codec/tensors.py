"""`encode` and `decode`: the whole way from a tensor to bytes and back.

It chooses the form; the forms are in `envelope.py`, `levels.py` and the image codecs' files. Called
by `cluster/`, on the codec pool's threads: most of the work is done without the GIL, and all that
takes long in pieces, so that it can be interrupted (`interruption.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from comfy_cluster.codec.blocks import check_blocks, decode_blocks, encode_blocks
from comfy_cluster.codec.device import pinned_copy
from comfy_cluster.codec.dtypes import DTYPE_NAMES, DTYPES
from comfy_cluster.codec.envelope import (
    Envelope,
    Head,
    pack_blocks,
    pack_images,
    pack_raw_prefix,
    parse_envelope,
    tensor_size,
)
from comfy_cluster.codec.image_codecs import BLOCK_CODECS, CODECS, IMAGE_CODECS, codec_of_file
from comfy_cluster.codec.interruption import check_interruption
from comfy_cluster.codec.levels import (
    FLOAT_DTYPES,
    LEVEL_DTYPES,
    Levels,
    exact_levels,
    fill_values,
    item_layout,
    levels_to_values,
    rounded_levels,
)
from comfy_cluster.codec.parts import Place
from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.codec.pieces import are_booleans, as_booleans, copy_octets, copy_of
from comfy_cluster.errors import ConfigError, CorruptPayload, UnsupportedTensor

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Bytes of tensor that a payload may stand for in any case, and else for each byte of it. Black
# images come to 4,600 by zstd, to twice that in float64; a few bytes that claim gigabytes are
# neither made nor taken.
SURELY_DECODED_SIZE = 64 << 20
LARGEST_INFLATION = 20_000
DEFAULT_CODEC = "png"  # every instance can decode it
PRECISION_CHOICES = ("exact", "uint8")


def encode(
    tensor: torch.Tensor,
    *,
    codec: str = DEFAULT_CODEC,
    precision: str = "exact",
    is_image: bool = False,
    place: Place | None = None,
    written: torch.cuda.Event | None = None,
) -> EncodedPayload:
    """Encode a tensor of any shape (at most 8 dimensions) and of a dtype in `dtypes.py`.

    `codec`, one of `CODECS`: "raw" sends the tensor's memory. All others send 8-bit images
    ([B,H,W,C], [B,H,W] or [H,W]; uint8, or float32 with every value exactly k/255) in a form that
    is named after them, and "lz4" and "zstd" make other tensors smaller too. Where that form cannot
    hold the tensor, or is no smaller, it goes raw; `EncodedPayload.codec` tells.

    `precision`: "exact" gives the same bits at the other end. "uint8" rounds and clips float images
    and masks to 8 bits (NaN becomes 0; alpha stays), but only with `is_image=True`: no caller
    that does not know what a tensor is can spoil a latent. The dtype is kept.

    `place`: the tensor is this part of a larger one. `written`: see `device.when_written`.

    A raw payload's body is the memory of a contiguous CPU tensor itself (`EncodedPayload`).

    Raises `UnsupportedTensor`, or `ConfigError` for an unknown codec or precision.
    """
    _check_choice("CODEC", codec, CODECS)
    _check_choice("IMAGE_PRECISION", precision, PRECISION_CHOICES)
    values = _plain_tensor(tensor, written)
    head = Head(tuple(values.shape), DTYPE_NAMES[values.dtype], place)
    is_rounded = precision == "uint8" and is_image and values.dtype in FLOAT_DTYPES
    payload = None
    if values.dtype in LEVEL_DTYPES and item_layout(values.shape) is not None:
        if is_rounded:
            levels = rounded_levels(values)
            payload = _plausible(_encode_levels(levels, head, codec, values.nbytes), values)
            values = levels_to_values(levels, values.dtype) if payload is None else values
        elif codec != "raw" and (exact := exact_levels(values)) is not None:
            payload = _plausible(_encode_levels(exact, head, codec, values.nbytes), values)
    if payload is None and codec in BLOCK_CODECS:
        payload = _plausible(_encode_blocks(values, head, codec), values)
    return payload or _encode_raw(values, head)


def _check_choice(setting: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        variable = f"COMFY_CLUSTER_{setting}"
        raise ConfigError(
            f"{variable}={value!r} is unknown: choose one of {', '.join(choices)}",
            variable=variable,
            value=value,
        )


def check_supported(tensor: torch.Tensor) -> None:
    """`UnsupportedTensor`, with what to do, for what `encode` cannot encode."""
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


def _plain_tensor(tensor: torch.Tensor, written: torch.cuda.Event | None) -> torch.Tensor:
    """The same values, contiguous, on the CPU, without gradient; copied only where needed."""
    check_supported(tensor)
    if tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_neg():
        return tensor.detach()
    if tensor.is_cuda and not tensor.is_neg():
        return pinned_copy(tensor, written)
    if written is not None:
        written.synchronize()
    return copy_of(tensor)


def _encode_raw(values: torch.Tensor, head: Head) -> EncodedPayload:
    octets = _octets_of(values)
    return EncodedPayload(pack_raw_prefix(head, len(octets)), octets.numpy().data, "raw")


def _octets_of(values: torch.Tensor) -> torch.Tensor:
    flat = values.reshape(-1)
    if flat.stride(0) != 1:  # a tensor of one element is contiguous with any stride
        flat = flat.as_strided((len(flat),), (1,))
    octets = flat.view(torch.uint8)
    if values.dtype == torch.bool and not are_booleans(octets):
        return as_booleans(octets).view(torch.uint8)
    return octets


def _encode_blocks(values: torch.Tensor, head: Head, codec: str) -> EncodedPayload | None:
    if not values.numel():
        return None
    memory = _octets_of(values).numpy().data
    blocks = encode_blocks(memory, codec, itemsize=values.itemsize)
    if blocks is None:
        return None
    prefix, body = pack_blocks(head, blocks)
    return EncodedPayload(prefix, memoryview(body), codec)


def _encode_levels(
    levels: torch.Tensor, head: Head, codec: str, size_limit: int
) -> EncodedPayload | None:
    """Encode as images, one file an item; None as soon as that is no smaller than `size_limit`.

    None too where the codec has no form for such images. Each item must stay under its share of the
    limit on average so far: noise is given up after the first image.
    """
    layout = item_layout(head.shape)
    assert layout is not None
    image_codec = IMAGE_CODECS.get(codec)
    if image_codec is None or not image_codec.fits(layout[1:]):
        return None
    images: list[bytes] = []
    total = 0
    for item in levels.reshape(layout).numpy():
        check_interruption()
        images.append(image_codec.encode(item))
        total += len(images[-1])
        if total * layout[0] >= size_limit * len(images):
            return None
    prefix, body = pack_images(head, images)
    return EncodedPayload(prefix, memoryview(body), codec, holds_levels=True)


Allocate = Callable[[int], memoryview]


def _plausible(payload: EncodedPayload | None, values: torch.Tensor) -> EncodedPayload | None:
    """None for a payload that its receiver would refuse."""
    is_sent = payload is not None and _is_plausible(values.nbytes, payload.size)
    return payload if is_sent else None


def _is_plausible(size: int, payload_size: int) -> bool:
    return size <= max(SURELY_DECODED_SIZE, LARGEST_INFLATION * payload_size)


def check_inflation(size: int, payload_size: int) -> None:
    """`CorruptPayload` for a tensor of `size` bytes in a payload far too small for it."""
    if not _is_plausible(size, payload_size):
        raise CorruptPayload(
            f"corrupt payload: {payload_size} bytes cannot hold a tensor of {size} bytes"
        )


def decode(
    data: Buffer, *, size_limit: int | None = None, allocate: Allocate | None = None
) -> torch.Tensor:
    """Decode a payload into a contiguous, writable CPU tensor that owns or keeps alive its memory.

    A raw payload in writable, aligned memory is not copied: the tensor is a view of `data`. Other
    payloads are checked first, then the tensor is allocated once, by `allocate(size)` if given;
    `size_limit` (bytes of that tensor) bounds it: a small PNG may hold an image that is 1000 times
    larger. Of a part (`parts.py`) it is that part.

    Raises `CorruptPayload` with what is wrong for anything that `encode` does not make.
    """
    envelope = parse_envelope(memoryview(data).cast("B"))
    dtype, size = checked_head(envelope)
    if envelope.data is not None:
        return _view_raw(envelope.data, envelope.shape, dtype, size)
    check_inflation(size, memoryview(data).nbytes)
    check_data(envelope, dtype, size)
    values = allocate_tensor(envelope.shape, dtype, size_limit=size_limit, allocate=allocate)
    decode_into(values.view(-1), envelope)
    return values


def checked_head(envelope: Envelope) -> tuple[torch.dtype, int]:
    """The dtype of an envelope, and the bytes of its tensor; `CorruptPayload` if it has neither."""
    if (dtype := DTYPES.get(envelope.dtype)) is None:
        raise CorruptPayload(f"corrupt payload: unknown dtype {envelope.dtype!r}")
    return dtype, _size_of(envelope.shape, dtype)


def _size_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    try:
        return tensor_size(shape, dtype.itemsize)
    except ValueError as error:
        raise CorruptPayload(f"corrupt payload: {error}") from None


def checked_size(shape: tuple[int, ...], dtype: torch.dtype, size_limit: int | None) -> int:
    """Bytes of such a tensor; `CorruptPayload` above `size_limit`, or where none can be."""
    size = _size_of(shape, dtype)
    if size_limit is not None and size > size_limit:
        raise CorruptPayload(f"corrupt payload: a tensor of {size} bytes, {size_limit} allowed")
    return size


def allocate_tensor(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    size_limit: int | None,
    allocate: Allocate | None,
) -> torch.Tensor:
    """A contiguous CPU tensor of any values. MemoryError; `CorruptPayload`: see `checked_size`."""
    size = checked_size(shape, dtype, size_limit)
    if allocate is None or not size:
        try:
            return torch.empty(shape, dtype=dtype, device="cpu")
        except RuntimeError:  # so torch calls it
            raise MemoryError(f"there is no memory for a tensor of {size} bytes") from None
    return torch.frombuffer(allocate(size), dtype=dtype).view(shape)


def _view_raw(
    data: memoryview, shape: tuple[int, ...], dtype: torch.dtype, size: int
) -> torch.Tensor:
    _check_raw(data, shape, dtype, size)
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    # torch warns about read-only memory, because it would write to it all the same.
    octets = torch.frombuffer(bytearray(data) if data.readonly else data, dtype=torch.uint8)
    if octets.data_ptr() % dtype.itemsize:
        octets = copy_of(octets)
    _check_booleans(octets, dtype)
    return octets.view(dtype).reshape(shape)


def _check_raw(data: memoryview, shape: tuple[int, ...], dtype: torch.dtype, size: int) -> None:
    if len(data) != size:
        raise CorruptPayload(
            f"corrupt payload: {len(data)} bytes of data, {list(shape)} {dtype} takes {size}"
        )


def _check_booleans(octets: torch.Tensor, dtype: torch.dtype) -> None:
    if dtype == torch.bool and not are_booleans(octets):
        raise CorruptPayload("corrupt payload: a bool that is neither 0 nor 1")


def check_data(envelope: Envelope, dtype: torch.dtype, size: int) -> None:
    """`CorruptPayload` unless the data declare what the head does; allocates next to nothing."""
    if envelope.data is not None:
        _check_raw(envelope.data, envelope.shape, dtype, size)
    elif envelope.blocks is not None:
        check_blocks(envelope.blocks, size)
    else:
        _check_images(envelope, dtype)


def _check_images(envelope: Envelope, dtype: torch.dtype) -> None:
    images = envelope.images
    assert images is not None
    layout = item_layout(envelope.shape)
    if layout is None or dtype not in LEVEL_DTYPES:
        raise CorruptPayload(
            f"corrupt payload: {list(envelope.shape)} {dtype} cannot hold 8-bit images"
        )
    if len(images) != layout[0]:
        raise CorruptPayload(f"corrupt payload: {len(images)} images for {layout[0]} items")
    for image in images:
        check_interruption()
        codec_of_file(image).check(image, layout[1:])


def decode_into(values: torch.Tensor, envelope: Envelope) -> None:
    """Fills the flat tensor `values` from an envelope that `check_data` let pass."""
    if envelope.images is not None:
        layout = item_layout(envelope.shape)
        assert layout is not None
        for item, image in zip(values.view(layout[0], -1), envelope.images, strict=True):
            check_interruption()
            levels = codec_of_file(image).decode(image, layout[1:])
            fill_values(_tensor_of(levels), item)
        return
    octets = values.view(torch.uint8)
    if envelope.blocks is not None:
        decode_blocks(envelope.blocks, octets.numpy())
    elif envelope.data is not None and len(envelope.data):
        copy_octets(envelope.data, octets)
    _check_booleans(octets, values.dtype)


def _tensor_of(levels: Levels) -> torch.Tensor:
    # torch warns about read-only memory; these are only read.
    return torch.from_numpy(levels if levels.flags.writeable else levels.copy())
