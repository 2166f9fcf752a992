"""The msgpack reader: agrees with msgpack on what it reads, refuses all else."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.codec.msgpack_reader import MsgpackReader
from comfy_cluster.errors import CorruptPayload

examples = settings(max_examples=80, deadline=None, derandomize=True)


def reader_of(value: object) -> MsgpackReader:
    return MsgpackReader(memoryview(msgpack.packb(value)))


@examples
@given(st.integers(0, 2**64 - 1))
def test_integers(value: int) -> None:
    assert reader_of(value).integer("it") == value


@pytest.mark.parametrize("packed", ["d005", "d10005", "d200000005", "d30000000000000005"])
def test_integers_in_signed_form(packed: str) -> None:
    assert MsgpackReader(memoryview(bytes.fromhex(packed))).integer("it") == 5


@pytest.mark.parametrize("value", [-1, -100, -(2**40)])
def test_negative_integers_are_refused(value: int) -> None:
    with pytest.raises(CorruptPayload, match=r"it is negative|it should be a non-negative"):
        reader_of(value).integer("it")


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, 256, 65535, 65536])
def test_sizes_in_every_form(size: int) -> None:
    assert reader_of("x" * size).text("it", limit=size) == "x" * size
    assert bytes(reader_of(b"x" * size).binary("it")) == b"x" * size
    assert reader_of([0] * size).array_size("it", limit=size) == size
    assert reader_of(dict.fromkeys(range(size))).map_size("it", limit=size) == size


def test_booleans() -> None:
    assert reader_of(True).boolean("it") is True
    assert reader_of(False).boolean("it") is False


def test_binary_is_a_view_of_the_input() -> None:
    data = bytearray(msgpack.packb(b"abc"))
    binary = MsgpackReader(memoryview(data)).binary("it")
    data[-1:] = b"d"
    assert bytes(binary) == b"abd"


def test_limits() -> None:
    with pytest.raises(CorruptPayload, match="it has size 5, the limit is 4"):
        reader_of([0] * 5).array_size("it", limit=4)
    with pytest.raises(CorruptPayload, match="it has size 5, the limit is 4"):
        reader_of("x" * 5).text("it", limit=4)


def test_text_must_be_ascii() -> None:
    with pytest.raises(CorruptPayload, match="it is not ASCII"):
        reader_of("ü").text("it", limit=9)


@pytest.mark.parametrize("packed", ["", "cd01", "c40361", "a361", "dd000000", "d9"])
def test_cut_off_values_are_refused(packed: str) -> None:
    data = memoryview(bytes.fromhex(packed))
    for read in (
        lambda: MsgpackReader(data).integer("it"),
        lambda: MsgpackReader(data).binary("it"),
        lambda: MsgpackReader(data).text("it", limit=10),
        lambda: MsgpackReader(data).array_size("it", limit=10),
    ):
        with pytest.raises(CorruptPayload, match=r"ends inside it|it should be"):
            read()


@pytest.mark.parametrize("value", [None, 1.5, msgpack.ExtType(1, b""), -3, "text", [1], {}])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(CorruptPayload, match="it should be a boolean, found msgpack type 0x"):
        reader_of(value).boolean("it")
