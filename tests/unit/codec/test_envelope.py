"""The envelope: plain msgpack with aligned data; each broken rule is named."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.codec import envelope
from comfy_cluster.codec.envelope import (
    Head,
    pack_blocks,
    pack_images,
    pack_raw_prefix,
    parse_envelope,
    tensor_size,
)
from comfy_cluster.codec.parts import LARGEST_PART_COUNT, Place
from comfy_cluster.errors import CorruptPayload

examples = settings(max_examples=60, deadline=None, derandomize=True)
dimensions = st.lists(st.integers(0, 2**40), max_size=8)
places = st.builds(
    Place, dimensions.map(tuple), st.integers(0, 2**64 - 1), st.integers(2, LARGEST_PART_COUNT)
)
RAW = {"shape": [2], "dtype": "uint8", "compressed": False, "data": b"ab"}


def parse(value: Any) -> envelope.Envelope:
    return parse_envelope(memoryview(msgpack.packb(value)))


@examples
@given(dimensions, st.binary(max_size=70_000))
def test_raw_envelope_is_plain_msgpack_with_aligned_data(shape: list[int], data: bytes) -> None:
    prefix = pack_raw_prefix(Head(tuple(shape), "bfloat16"), len(data))
    assert len(prefix) % 64 == 0
    fields = msgpack.unpackb(prefix + data)
    assert set(fields.pop("pad")) <= {0}
    assert fields == {"shape": shape, "dtype": "bfloat16", "compressed": False, "data": data}
    parsed = parse_envelope(memoryview(prefix + data))
    assert (parsed.shape, parsed.dtype, parsed.images) == (tuple(shape), "bfloat16", None)
    assert parsed.data is not None and bytes(parsed.data) == data


@examples
@given(dimensions, st.lists(st.binary(min_size=16, max_size=300), max_size=70))
def test_image_envelope_is_plain_msgpack(shape: list[int], images: list[bytes]) -> None:
    prefix, body = pack_images(Head(tuple(shape), "float32"), images)
    assert len(prefix) % 64 == 0
    fields = msgpack.unpackb(prefix + body)
    fields.pop("pad")
    assert fields == {"shape": shape, "dtype": "float32", "compressed": True, "images": images}
    parsed = parse_envelope(memoryview(prefix + body))
    assert parsed.images is not None and list(map(bytes, parsed.images)) == images
    assert parsed.data is None


@examples
@given(dimensions, st.lists(st.binary(min_size=16, max_size=300), max_size=70))
def test_blocks_envelope_is_plain_msgpack(shape: list[int], blocks: list[bytes]) -> None:
    prefix, body = pack_blocks(Head(tuple(shape), "int64"), blocks)
    assert len(prefix) % 64 == 0
    fields = msgpack.unpackb(prefix + body)
    fields.pop("pad")
    assert fields == {"shape": shape, "dtype": "int64", "compressed": True, "blocks": blocks}
    parsed = parse_envelope(memoryview(prefix + body))
    assert parsed.blocks is not None and list(map(bytes, parsed.blocks)) == blocks
    assert (parsed.data, parsed.images, parsed.place) == (None, None, None)


@examples
@given(dimensions, places)
def test_part_tells_its_place_whatever_form_it_has(shape: list[int], place: Place) -> None:
    head = Head(tuple(shape), "float16", place)
    files = [bytes(16), bytes(99)]
    for data in (
        pack_raw_prefix(head, 5) + b"abcde",
        b"".join(pack_images(head, files)),
        b"".join(pack_blocks(head, files)),
    ):
        fields = msgpack.unpackb(data)
        assert fields["whole"] == list(place.whole)
        assert (fields["first"], fields["parts"]) == (place.first, place.count)
        parsed = parse_envelope(memoryview(data))
        assert (parsed.shape, parsed.place) == (tuple(shape), place)


def test_keys_in_any_order_and_without_pad() -> None:
    parsed = parse(dict(reversed(RAW.items())))
    assert (parsed.shape, parsed.dtype) == ((2,), "uint8")
    assert parsed.data is not None and bytes(parsed.data) == b"ab"


def test_data_over_4_gib_follows_the_map() -> None:
    size = 5 << 30
    prefix = pack_raw_prefix(Head((size,), "uint8"), size)
    assert len(prefix) % 64 == 0
    fields = msgpack.unpackb(prefix)
    fields.pop("pad")
    assert fields == {"shape": [size], "dtype": "uint8", "compressed": False, "data_size": size}


def test_data_after_the_map_is_read() -> None:
    head = msgpack.packb({"shape": [3], "dtype": "uint8", "compressed": False, "data_size": 3})
    parsed = parse_envelope(memoryview(head + b"abc"))
    assert parsed.data is not None and bytes(parsed.data) == b"abc"
    with pytest.raises(CorruptPayload, match="'data_size' is 3, but 2 bytes follow"):
        parse_envelope(memoryview(head + b"ab"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shape": None}, "'shape' should be an array"),
        ({"shape": [1] * 9}, "'shape' has size 9, the limit is 8"),
        ({"shape": [-1]}, "non-negative"),
        ({"shape": ["2"]}, "a dimension in 'shape' should be a non-negative integer"),
        ({"shape": [2.0]}, "a dimension in 'shape' should be a non-negative integer"),
        ({"dtype": 3}, "'dtype' should be a text"),
        ({"dtype": "x" * 17}, "'dtype' has size 17"),
        ({"compressed": 0}, "'compressed' should be a boolean"),
        ({"compressed": True}, "'images' should hold the tensor"),
        ({"data": "ab"}, "'data' should be a binary"),
        ({"data": [b"ab"]}, "'data' should be a binary"),
        ({"data_size": 0}, "exclude each other"),
        ({"images": []}, "'data' should hold the tensor"),
        ({"pad": 1}, "'pad' should be a binary"),
        ({"blocks": []}, "'data' should hold the tensor"),
        ({"blocks": 1}, "'blocks' should be an array"),
        ({"compressed": True, "blocks": [b"x" * 16]}, "found \\['blocks', 'data'\\]"),
        ({"more": 1}, "unknown key 'more'"),
        ({1: 1}, "a key should be a text"),
    ],
)
def test_wrong_field_is_named(change: dict[Any, Any], text: str) -> None:
    with pytest.raises(CorruptPayload, match=text):
        parse({**RAW, **change})


PART = {"whole": [9], "first": 2, "parts": 3}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"whole": 9}, "'whole' should be an array"),
        ({"whole": [1] * 9}, "'whole' has size 9, the limit is 8"),
        ({"whole": [-1000]}, "a dimension in 'whole' is negative"),
        ({"first": -1000}, "'first' is negative"),
        ({"first": [2]}, "'first' should be a non-negative integer"),
        ({"parts": "3"}, "'parts' should be a non-negative integer"),
        ({"parts": 0}, "a tensor in 0 parts, 2 to 256 are possible"),
        ({"parts": 1}, "a tensor in 1 parts"),
        ({"parts": LARGEST_PART_COUNT + 1}, "a tensor in 257 parts"),
        ({"parts": 2**64 - 1}, "a tensor in 18446744073709551615 parts"),
    ],
)
def test_wrong_place_is_named(change: dict[str, Any], text: str) -> None:
    assert parse({**RAW, **PART}).place == Place((9,), 2, 3)
    with pytest.raises(CorruptPayload, match=text):
        parse({**RAW, **PART, **change})


@pytest.mark.parametrize("key", list(PART))
def test_missing_key_of_a_place_is_named(key: str) -> None:
    place = {name: value for name, value in PART.items() if name != key}
    with pytest.raises(CorruptPayload, match=f"a part without key '{key}'"):
        parse({**RAW, **place})


@pytest.mark.parametrize("key", list(RAW))
def test_missing_key_is_named(key: str) -> None:
    with pytest.raises(CorruptPayload, match=f"'{key}'"):
        parse({name: value for name, value in RAW.items() if name != key})


def test_key_that_comes_twice_is_refused() -> None:
    with pytest.raises(CorruptPayload, match="key 'pad' comes twice"):
        parse_envelope(memoryview(b"\x82" + 2 * (msgpack.packb("pad") + msgpack.packb(b""))))


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(CorruptPayload, match="1 bytes after the end"):
        parse_envelope(memoryview(msgpack.packb(RAW) + b"\x00"))


@pytest.mark.parametrize("key", ["images", "blocks"])
def test_more_binaries_than_the_input_can_hold_are_refused(key: str) -> None:
    fields = {"shape": [1], "dtype": "uint8", "compressed": True, key: [b""] * 50}
    with pytest.raises(CorruptPayload, match=f"'{key}' has size 50"):
        parse(fields)


class TestTensorSize:
    @pytest.mark.parametrize(
        ("shape", "size"), [([], 4), ([3], 12), ([2, 3], 24), ([0, 1 << 59], 0)]
    )
    def test_bytes_of_a_shape(self, shape: list[int], size: int) -> None:
        assert tensor_size(shape, 4) == size

    @pytest.mark.parametrize("shape", [[1 << 61], [0, 1 << 62], [1 << 31, 1 << 31], [1] * 9])
    def test_shapes_beyond_torch_are_refused(self, shape: list[int]) -> None:
        with pytest.raises(ValueError, match=r"too large|the limit is 8"):
            tensor_size(shape, 4)
