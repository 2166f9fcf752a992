"""Values of ComfyUI's links, taken apart and put together again."""

from __future__ import annotations

import contextlib
import json
import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster import values
from comfy_cluster.errors import CorruptPayload, UnsupportedTensor

examples = settings(max_examples=60, deadline=None, derandomize=True)
constants = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)
tensors = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16, torch.uint8]),
)
nested = st.recursive(
    constants | tensors,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=20,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(list("tclud")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(st.sampled_from(list("tclud")), inner).map(list)
        | st.dictionaries(st.sampled_from(list("tclud")), inner, max_size=3)
    ),
    max_leaves=15,
)


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types, and with the same tensors."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one is other
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


def unpacked_or_refused(description: bytes, given_tensors: list[torch.Tensor]) -> None:
    """A value, or CorruptPayload; anything else is a failure of the test."""
    for call in (values.tensor_count, lambda text: values.unpack(text, given_tensors)):
        with contextlib.suppress(CorruptPayload):
            call(description)


@examples
@given(value=nested)
def test_a_value_comes_out_as_it_went_in(value: Any) -> None:
    packed = values.pack(value)
    assert values.tensor_count(packed.description) == len(packed.tensors)
    assert same(values.unpack(packed.description, packed.tensors), value)


@examples
@given(value=nested)
def test_one_tensor_too_few_is_refused(value: Any) -> None:
    packed = values.pack(value)
    if packed.tensors:
        with pytest.raises(CorruptPayload, match="not there"):
            values.unpack(packed.description, packed.tensors[:-1])


@examples
@given(description=st.binary(max_size=100))
def test_any_bytes(description: bytes) -> None:
    unpacked_or_refused(description, [torch.zeros(1)])


@examples
@given(form=json_values)
def test_any_json(form: Any) -> None:
    unpacked_or_refused(json.dumps(form).encode(), [torch.zeros(1), torch.zeros(2)])


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"[" * 100_000,
        b'["t", -1]',
        b'["t", true]',
        b'["t", 0.0]',
        b'["t", 1]',
        b'["l", {}]',
        b'["d", []]',
        b'["x", 1]',
        b'[["t"], 1]',
        b'["c", [1]]',
        b'["c"]',
        b'["l", [["t", 1]]]',
        b'["t", ' + b"9" * 400 + b"]",
        b'["t", ' + b"9" * 5_000 + b"]",
    ],
)
def test_what_is_no_description(description: bytes) -> None:
    with pytest.raises(CorruptPayload):
        values.tensor_count(description)
    with pytest.raises(CorruptPayload):
        values.unpack(description, [])


def test_nan_and_infinity_stay_what_they_are() -> None:
    packed = values.pack([math.nan, math.inf, -math.inf])
    found = values.unpack(packed.description, [])
    assert math.isnan(found[0]) and found[1:] == [math.inf, -math.inf]


def test_mappings_of_any_kind_become_dicts() -> None:
    packed = values.pack(OrderedDict(b=1, a=[2]))
    assert same(values.unpack(packed.description, []), {"b": 1, "a": [2]})


def test_a_tensor_may_be_there_twice() -> None:
    tensor = torch.zeros(2)
    packed = values.pack([tensor, tensor])
    assert values.tensor_count(packed.description) == 2


def nested_tensor() -> torch.Tensor:
    """Like the samples of video with audio."""
    return torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)], layout=torch.jagged)


class Model:
    """Like what a checkpoint loader gives."""


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (Model(), "value is a Model"),
        ([1, {"cond": Model()}], r"value\[1\]\['cond'\] is a Model"),
        ({1: 2}, "value is a dict"),
        (b"bytes", "value is a bytes"),
        ({"samples": nested_tensor()}, r"\['samples'\] is a nested"),
    ],
)
def test_what_cannot_travel_is_named(value: Any, place: str) -> None:
    with pytest.raises(UnsupportedTensor, match=place):
        values.pack(value)


def test_too_deep_and_too_long() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(UnsupportedTensor, match="levels"):
        values.pack(deep)
    itself: list[Any] = []
    itself.append(itself)
    with pytest.raises(UnsupportedTensor, match="levels"):
        values.pack(itself)
    with pytest.raises(UnsupportedTensor, match="more than"):
        values.pack("x" * (values.LARGEST_DESCRIPTION + 1))


def test_numbers_beyond_all_measure_cannot_travel() -> None:
    with pytest.raises(UnsupportedTensor):
        values.pack([10**5_000])
