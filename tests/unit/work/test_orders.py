"""What instances tell each other about work: whatever comes in, a sound value or one error."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.errors import RemoteProtocolError
from comfy_cluster.wire import MessageType
from comfy_cluster.work.orders import (
    LARGEST_TEXT,
    Cancel,
    Failure,
    Order,
    OrderKind,
    Progress,
    Result,
    Trouble,
    WorkState,
)

PROMPT = {"1": {"class_type": "Blur", "inputs": {"images": ["0", 0]}, "_meta": {"title": "b"}}}
ORDER = Order(
    job_id="p:1",
    prompt_id="6f9619ff-8b86-d011-b42d-00c04fc964ff",
    kind=OrderKind.REGION.value,
    prompt=PROMPT,
    members=(0, 2),
    first_items=(3, 0),
    item_counts=(2, 1),
    positions={"1": ("1",)},
    extra_data={"extra_pnginfo": {"workflow": {"nodes": [1.5, None]}}},
)
MESSAGES: list[Any] = [
    ORDER,
    Order("j", "p", OrderKind.WORKFLOW.value, PROMPT, (0,)),
    Progress("j", WorkState.QUEUED.value),
    Progress("j", WorkState.RUNNING.value, 0.25),
    Result("j", {"7": {"files": ["a.png"]}}),
    Trouble("j", Failure.FAILED.value, "out of paint", "node 3 (Fail)"),
    Cancel("j", "the user interrupted"),
    Cancel("j"),
]
KINDS: list[Any] = [Order, Progress, Result, Trouble, Cancel]

examples = settings(max_examples=60, deadline=None, derandomize=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = sorted({name for kind in KINDS for name in kind.__dataclass_fields__})


def parsed_or_refused(kind: Any, payload: bytes) -> Any:
    """The value; None where it was refused. Anything else is a failure of the test."""
    try:
        return kind.parse(payload)
    except RemoteProtocolError as error:
        assert len(str(error)) <= LARGEST_TEXT
        return None


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_they_arrive_as_they_were(message: Any) -> None:
    assert type(message).parse(message.pack()) == message


@pytest.mark.parametrize("kind", KINDS)
def test_each_has_its_message_type(kind: Any) -> None:
    assert isinstance(kind.message_type, MessageType)
    assert json.loads(MESSAGES[0].pack()).keys() == Order.__dataclass_fields__.keys()


@pytest.mark.parametrize("kind", KINDS)
@examples
@given(payload=st.binary(max_size=200))
def test_any_bytes(kind: Any, payload: bytes) -> None:
    parsed_or_refused(kind, payload)


@pytest.mark.parametrize("kind", KINDS)
@examples
@given(value=json_values)
def test_any_json(kind: Any, value: Any) -> None:
    parsed_or_refused(kind, json.dumps(value).encode())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@examples
@given(changes=st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=2))
def test_any_value_in_a_field(message: Any, changes: dict[str, Any]) -> None:
    fields = {**json.loads(message.pack()), **changes}
    found = parsed_or_refused(type(message), json.dumps(fields).encode())
    if found is not None:
        check_soundness(found)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@examples
@given(st.data())
def test_a_field_is_missing(message: Any, data: st.DataObject) -> None:
    fields = json.loads(message.pack())
    del fields[data.draw(st.sampled_from(sorted(fields)))]
    found = parsed_or_refused(type(message), json.dumps(fields).encode())
    if found is not None:
        check_soundness(found)


def check_soundness(message: Any) -> None:
    """What those who use them take for granted."""
    assert 0 < len(message.job_id) <= 200
    if isinstance(message, Progress):
        assert type(message.fraction) is float
        assert 0.0 <= message.fraction <= 1.0
    elif isinstance(message, Trouble):
        assert Failure(message.failure)
        assert isinstance(message.message, str) and isinstance(message.node, str)
    elif isinstance(message, Result):
        assert isinstance(message.outputs, dict)
    elif isinstance(message, Order):
        assert OrderKind(message.kind)
        assert all(type(each) is int and each >= 0 for each in message.members)
        assert len(message.first_items) == len(message.item_counts)
        assert all(message.prompt[each] for each in message.positions)
        for node in message.prompt.values():
            assert isinstance(node["class_type"], str)
            assert isinstance(node["inputs"], dict)


@pytest.mark.parametrize(
    "fraction", ["0.5", True, None, -0.1, 1.1, math.nan, math.inf, 10**400, [], {}]
)
def test_what_is_no_fraction(fraction: Any) -> None:
    payload = {"job_id": "j", "state": "running", "fraction": fraction}
    assert parsed_or_refused(Progress, json.dumps(payload).encode()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"job_id": ""},
        {"job_id": "j" * 201},
        {"job_id": 5},
        {"kind": "half"},
        {"kind": ["region"]},
        {"prompt": {}},
        {"prompt": {"1": {"class_type": "Blur"}}},
        {"prompt": {"1": {"class_type": 5, "inputs": {}}}},
        {"prompt": {"1": {"inputs": {}}}},
        {"prompt": {"1": "Blur"}},
        {"members": [-1]},
        {"members": [True]},
        {"members": "01"},
        {"first_items": [1]},
        {"positions": ["2"]},
        {"positions": [1]},
        {"extra_data": []},
        {"more": 1},
    ],
)
def test_orders_that_make_no_sense(changes: dict[str, Any]) -> None:
    payload = json.dumps({**json.loads(ORDER.pack()), **changes}).encode()
    with pytest.raises(RemoteProtocolError, match="DISTRIBUTE_PROMPT that makes no sense"):
        Order.parse(payload)


def test_deep_nesting_is_refused() -> None:
    payload = b'{"job_id":"j","outputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert parsed_or_refused(Result, payload) is None


def test_long_texts_are_cut() -> None:
    trouble = Trouble("j", Failure.FAILED.value, "m" * 10_000, "n" * 10_000)
    assert len(trouble.message) == len(trouble.node) == LARGEST_TEXT


def test_what_nodes_of_others_leave_in_the_history_becomes_text() -> None:
    outputs = {"7": {"shown": ({1, 2}, object(), float), ("a", "b"): 1, "size": (2, 3)}}
    found = Result.parse(Result("j", outputs).pack()).outputs
    assert found["7"]["size"] == [2, 3]
    assert found["7"]["shown"][0] == "{1, 2}"
