"""The msgpack envelope around a tensor's bytes (spec.md section 8). Imports no torch.

It knows keys, sizes and limits, not what the data mean. Called by `tensors.py`.

How it works. A payload is one msgpack map with these keys, in any order when read:

    shape       array of at most 8 non-negative integers
    dtype       name of a dtype, see `dtypes.py`
    compressed  false: `data` holds the tensor's memory, C order, little-endian
                true: `images` holds one 8-bit lossless image an item
    pad         optional; binary without meaning
    data        binary                        (compressed: false)
    data_size   integer; instead of `data`: so many bytes follow the map. msgpack's largest binary
                has 4 GiB - 1 bytes; a larger tensor is sent this way, still without a copy
    images      array of binaries             (compressed: true)

We write `pad` and then the data's key last, with the pad chosen so that what precedes the data is a
multiple of 64 bytes: in memory that is aligned, the receiver uses the tensor where it lies. Below
4 GiB the payload as a whole is plain msgpack that any msgpack library reads. Other keys, a key
twice, a missing key and bytes after the end are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgpack

from comfy_cluster.codec.msgpack_reader import MsgpackReader
from comfy_cluster.errors import CorruptPayload

ALIGNMENT = 64  # bytes: a cache line, and the widest vector load that torch uses
MAX_DIMENSIONS = 8  # no tensor of ComfyUI has more than 6
MAX_TENSOR_SIZE = 1 << 62  # bytes: strides and sizes stay far inside torch's int64
MAX_BINARY_SIZE = (1 << 32) - 1  # bytes: msgpack bin32
_MAX_KEY_COUNT = 6
_MAX_TEXT_SIZE = 16  # characters: the longest key and dtype name have 10
# bytes: no lossless image file is smaller, and a view of one costs ten times as much memory
_MIN_IMAGE_SIZE = 16
_HEADER_KEYS = {"shape", "dtype", "compressed"}


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed envelope. Exactly one of `data` and `images` is set; both are views of the input."""

    shape: tuple[int, ...]
    dtype: str
    data: memoryview | None
    images: tuple[memoryview, ...] | None


def tensor_size(shape: Sequence[int], itemsize: int) -> int:
    """Bytes of a tensor of that shape; `ValueError` if torch could not hold or address it.

    Zero-size tensors count too: torch multiplies their other dimensions for the strides.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{len(shape)} dimensions, the limit is {MAX_DIMENSIONS}")
    addressed = itemsize
    for dimension in shape:
        addressed *= max(dimension, 1)
        if addressed > MAX_TENSOR_SIZE:
            raise ValueError(f"shape {list(shape)} is too large to address")
    return 0 if 0 in shape else addressed


def pack_raw_prefix(shape: Sequence[int], dtype: str, data_size: int) -> bytes:
    """All that precedes the `data_size` bytes of the tensor's memory; a multiple of 64 bytes."""
    if data_size <= MAX_BINARY_SIZE:
        last = _pack("data") + b"\xc6" + data_size.to_bytes(4, "big")
    else:
        last = _pack("data_size") + b"\xcf" + data_size.to_bytes(8, "big")
    return _pack_prefix(shape, dtype, last, compressed=False)


def pack_images(shape: Sequence[int], dtype: str, images: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Prefix and body of a payload that holds one 8-bit lossless image an item."""
    packer = msgpack.Packer()
    last = _pack("images") + packer.pack_array_header(len(images))
    body = b"".join(part for image in images for part in (_binary_header(len(image)), image))
    return _pack_prefix(shape, dtype, last, compressed=True), body


def _pack_prefix(shape: Sequence[int], dtype: str, last: bytes, *, compressed: bool) -> bytes:
    head = b"".join(
        [
            msgpack.Packer().pack_map_header(5),
            *(_pack("shape"), _pack(list(shape))),
            *(_pack("dtype"), _pack(dtype)),
            *(_pack("compressed"), _pack(compressed)),
            _pack("pad"),
        ]
    )
    pad_size = -(len(head) + 2 + len(last)) % ALIGNMENT
    return b"".join([head, b"\xc4", bytes([pad_size]), bytes(pad_size), last])


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _binary_header(size: int) -> bytes:
    return b"\xc6" + size.to_bytes(4, "big")


def parse_envelope(data: memoryview) -> Envelope:
    """Read an envelope. Allocates a few hundred bytes and one small view an image, never more.

    Raises `CorruptPayload` with what is wrong for anything but a well-formed envelope. Whether
    the data fit the shape is not checked here.
    """
    reader = MsgpackReader(data)
    fields: dict[str, object] = {}
    for _ in range(reader.map_size("the envelope", limit=_MAX_KEY_COUNT)):
        key = reader.text("a key", limit=_MAX_TEXT_SIZE)
        if key in fields:
            raise CorruptPayload(f"corrupt payload: key '{key}' comes twice")
        fields[key] = _read_field(reader, key)
    trailing = reader.rest()
    fields.pop("pad", None)
    if "data_size" in fields:
        fields["data"] = _take_following(trailing, fields)
    elif len(trailing):
        raise CorruptPayload(f"corrupt payload: {len(trailing)} bytes after the end")
    return _make_envelope(fields)


def _read_field(reader: MsgpackReader, key: str) -> object:
    if key == "shape":
        count = reader.array_size("'shape'", limit=MAX_DIMENSIONS)
        return tuple(reader.integer("a dimension in 'shape'") for _ in range(count))
    if key == "dtype":
        return reader.text("'dtype'", limit=_MAX_TEXT_SIZE)
    if key == "compressed":
        return reader.boolean("'compressed'")
    if key == "data_size":
        return reader.integer("'data_size'")
    if key in ("data", "pad"):
        return reader.binary(f"'{key}'")
    if key == "images":
        limit = len(reader.rest()) // _MIN_IMAGE_SIZE
        count = reader.array_size("'images'", limit=limit)
        return tuple([reader.binary(f"image {index} in 'images'") for index in range(count)])
    raise CorruptPayload(f"corrupt payload: unknown key {key!r}")


def _take_following(trailing: memoryview, fields: dict[str, object]) -> memoryview:
    size = fields.pop("data_size")
    if "data" in fields:
        raise CorruptPayload("corrupt payload: 'data' and 'data_size' exclude each other")
    if size != len(trailing):
        raise CorruptPayload(
            f"corrupt payload: 'data_size' is {size}, but {len(trailing)} bytes follow"
        )
    return trailing


def _make_envelope(fields: dict[str, object]) -> Envelope:
    if missing := _HEADER_KEYS - fields.keys():
        raise CorruptPayload(f"corrupt payload: key '{min(missing)}' is missing")
    expected = "images" if fields["compressed"] else "data"
    if fields.keys() != _HEADER_KEYS | {expected}:
        found = sorted(fields.keys() - _HEADER_KEYS)
        raise CorruptPayload(
            f"corrupt payload: compressed is {fields['compressed']}, so '{expected}' should "
            f"hold the tensor; found {found}"
        )
    return Envelope(
        shape=fields["shape"],  # type: ignore[arg-type]  # _read_field made these types
        dtype=fields["dtype"],  # type: ignore[arg-type]
        data=fields.get("data"),  # type: ignore[arg-type]
        images=fields.get("images"),  # type: ignore[arg-type]
    )
