"""The msgpack envelope around a tensor's bytes (spec.md section 8). Imports no torch.

It knows keys, sizes and limits, not what the data mean. Called by `tensors.py`.

How it works. A payload is one msgpack map with these keys, in any order when read:

    shape       array of at most 8 non-negative integers
    dtype       name of a dtype, see `dtypes.py`
    compressed  false: `data` holds the tensor's memory, C order, little-endian
                true: `images` holds one 8-bit lossless image an item, or `blocks` that memory
    pad         optional; binary without meaning
    data        binary                        (compressed: false)
    data_size   integer; instead of `data`: so many bytes follow the map. msgpack's largest binary
                has 4 GiB - 1 bytes; a larger tensor is sent this way, still without a copy
    images      array of binaries             (compressed: true)
    blocks      array of binaries             (compressed: true), see `blocks.py`
    whole       array like `shape`; with it `first` and `parts`, integers: this is a part of a
                larger tensor, see `parts.py`

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
from comfy_cluster.codec.parts import LARGEST_PART_COUNT, Place
from comfy_cluster.errors import CorruptPayload

ALIGNMENT = 64  # bytes: a cache line, and the widest vector load that torch uses
MAX_DIMENSIONS = 8  # no tensor of ComfyUI has more than 6
MAX_TENSOR_SIZE = 1 << 62  # bytes: strides and sizes stay far inside torch's int64
MAX_BINARY_SIZE = (1 << 32) - 1  # bytes: msgpack bin32
_MAX_KEY_COUNT = 8
_MAX_TEXT_SIZE = 16  # characters: the longest key and dtype name have 10
# bytes: no lossless image file and no block is smaller, and a view costs ten times as much memory
_MIN_BINARY_SIZE = 16
_HEADER_KEYS = {"shape", "dtype", "compressed"}
_PLACE_KEYS = {"whole", "first", "parts"}


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed envelope. One of `data`, `images` and `blocks` is set, to views of the input."""

    shape: tuple[int, ...]
    dtype: str
    data: memoryview | None
    images: tuple[memoryview, ...] | None
    blocks: tuple[memoryview, ...] | None
    place: Place | None
    """None: it holds all of the tensor."""


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


@dataclass(frozen=True, slots=True)
class Head:
    """What an envelope says of its tensor, whatever form the data have."""

    shape: tuple[int, ...]
    dtype: str
    place: Place | None = None


def pack_raw_prefix(head: Head, data_size: int) -> bytes:
    """All that precedes the `data_size` bytes of the tensor's memory; a multiple of 64 bytes."""
    if data_size <= MAX_BINARY_SIZE:
        last = _pack("data") + b"\xc6" + data_size.to_bytes(4, "big")
    else:
        last = _pack("data_size") + b"\xcf" + data_size.to_bytes(8, "big")
    return _pack_prefix(head, last, compressed=False)


def pack_images(head: Head, images: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Prefix and body of a payload that holds one 8-bit lossless image an item."""
    return _pack_binaries(head, "images", images)


def pack_blocks(head: Head, blocks: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Prefix and body of a payload that holds the tensor's memory in compressed blocks."""
    return _pack_binaries(head, "blocks", blocks)


def _pack_binaries(head: Head, key: str, binaries: Sequence[bytes]) -> tuple[bytes, bytes]:
    last = _pack(key) + msgpack.Packer().pack_array_header(len(binaries))
    body = b"".join(part for each in binaries for part in (_binary_header(len(each)), each))
    return _pack_prefix(head, last, compressed=True), body


def _pack_prefix(head: Head, last: bytes, *, compressed: bool) -> bytes:
    place = head.place
    fields: dict[str, object] = {
        "shape": list(head.shape),
        "dtype": head.dtype,
        "compressed": compressed,
    }
    if place is not None:
        fields |= {"whole": list(place.whole), "first": place.first, "parts": place.count}
    packed = b"".join(_pack(key) + _pack(value) for key, value in fields.items())
    begin = msgpack.Packer().pack_map_header(len(fields) + 2) + packed + _pack("pad")
    pad_size = -(len(begin) + 2 + len(last)) % ALIGNMENT
    return b"".join([begin, b"\xc4", bytes([pad_size]), bytes(pad_size), last])


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
    if key in ("shape", "whole"):
        count = reader.array_size(f"'{key}'", limit=MAX_DIMENSIONS)
        return tuple(reader.integer(f"a dimension in '{key}'") for _ in range(count))
    if key == "dtype":
        return reader.text("'dtype'", limit=_MAX_TEXT_SIZE)
    if key == "compressed":
        return reader.boolean("'compressed'")
    if key in ("data_size", "first", "parts"):
        return reader.integer(f"'{key}'")
    if key in ("data", "pad"):
        return reader.binary(f"'{key}'")
    if key in ("images", "blocks"):
        limit = len(reader.rest()) // _MIN_BINARY_SIZE
        count = reader.array_size(f"'{key}'", limit=limit)
        return tuple([reader.binary(f"binary {index} in '{key}'") for index in range(count)])
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
    place = _take_place(fields)
    expected = {"images", "blocks"} if fields["compressed"] else {"data"}
    found = fields.keys() - _HEADER_KEYS
    if len(found) != 1 or not found <= expected:
        raise CorruptPayload(
            f"corrupt payload: compressed is {fields['compressed']}, so "
            f"{' or '.join(map(repr, sorted(expected)))} should hold the tensor; "
            f"found {sorted(found)}"
        )
    return Envelope(
        shape=fields["shape"],  # type: ignore[arg-type]  # _read_field made these types
        dtype=fields["dtype"],  # type: ignore[arg-type]
        data=fields.get("data"),  # type: ignore[arg-type]
        images=fields.get("images"),  # type: ignore[arg-type]
        blocks=fields.get("blocks"),  # type: ignore[arg-type]
        place=place,
    )


def _take_place(fields: dict[str, object]) -> Place | None:
    present = _PLACE_KEYS & fields.keys()
    if not present:
        return None
    if missing := _PLACE_KEYS - present:
        raise CorruptPayload(f"corrupt payload: a part without key '{min(missing)}'")
    whole, first, count = (fields.pop(key) for key in ("whole", "first", "parts"))
    if not 2 <= count <= LARGEST_PART_COUNT:  # type: ignore[operator]  # see above
        raise CorruptPayload(
            f"corrupt payload: a tensor in {count} parts, 2 to {LARGEST_PART_COUNT} are possible"
        )
    return Place(whole, first, count)  # type: ignore[arg-type]
