"""What instances tell each other about work: the payloads of the messages, as values and as bytes.

JSON, since prompts are. `parse` takes bytes from the network: whatever they are, it returns a value
that cannot be wrong, or raises RemoteProtocolError. docs/protocol.md lists the fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar, TypeVar

from comfy_cluster.errors import RemoteProtocolError
from comfy_cluster.wire import MessageType
from comfy_cluster.workflows.prompt import Prompt

LARGEST_TEXT = 4_000  # characters of a text for people
_T = TypeVar("_T", bound="_Payload")


class _Payload:
    """Base of the messages: dataclasses whose fields are JSON."""

    message_type: ClassVar[MessageType]

    def pack(self) -> bytes:
        """What is no JSON, as nodes of others may leave it in ComfyUI's history, becomes text."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        text = json.dumps(values, separators=(",", ":"), default=_plain, skipkeys=True)
        return text.encode()

    @classmethod
    def parse(cls: type[_T], payload: bytes) -> _T:
        """Raises RemoteProtocolError."""
        try:
            values = json.loads(payload)
            if not isinstance(values, dict):
                raise ValueError("not an object")
            return cls(**values)
        except (ValueError, TypeError, RecursionError) as error:
            text = f"a {cls.message_type.name} that makes no sense: {error}"
            raise RemoteProtocolError(text[:LARGEST_TEXT]) from None


def job_id_in(payload: bytes) -> str:
    """The job that a message is about that cannot be parsed; empty if not even that is there."""
    try:
        job_id = json.loads(payload)["job_id"]
        _check_texts(job_id)
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return str(job_id)


class OrderKind(str, Enum):
    """How much of a workflow an order is about."""

    REGION = "region"
    WORKFLOW = "workflow"
    CHECK = "check"
    """Whether a workflow could run; its result has nothing in it."""


@dataclass(frozen=True)
class Order(_Payload):
    """DISTRIBUTE_PROMPT (a region) and EXECUTE_WORKFLOW: the leader wants a prompt to be run."""

    message_type = MessageType.DISTRIBUTE_PROMPT

    job_id: str
    prompt_id: str
    """Under which the follower queues it: a UUID, as newer ComfyUI wants it."""
    kind: str
    prompt: Prompt
    members: tuple[int, ...]
    """Who takes part, in the order of their slices."""
    first_items: tuple[int, ...] = ()
    """Regions: for each batch of the fanned-out list the position of the receiver's first item."""
    item_counts: tuple[int, ...] = ()
    """Regions: how many items of each the receiver gets."""
    positions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Nodes that tell positions, each with the fan-outs whose slices its latents are made of."""
    extra_data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_texts(self.job_id, self.prompt_id)
        OrderKind(self.kind)
        for name in ("members", "first_items", "item_counts"):
            object.__setattr__(self, name, _integers(getattr(self, name)))
        if not isinstance(self.positions, Mapping):
            raise ValueError("positions is no object")
        told = {node_id: _texts(fan_outs) for node_id, fan_outs in self.positions.items()}
        object.__setattr__(self, "positions", told)
        if len(self.first_items) != len(self.item_counts):
            raise ValueError("first_items and item_counts differ in length")
        if not isinstance(self.extra_data, Mapping):
            raise ValueError("extra_data is no object")
        _check_prompt(self.prompt)
        if not set(self.positions) <= self.prompt.keys():
            raise ValueError("positions are told by nodes that are not there")


class WorkState(str, Enum):
    """Where an order is."""

    QUEUED = "queued"
    RUNNING = "running"


@dataclass(frozen=True)
class Progress(_Payload):
    """EXECUTION_PROGRESS: the follower has validated and queued it, or is at it."""

    message_type = MessageType.EXECUTION_PROGRESS

    job_id: str
    state: str
    fraction: float = 0.0

    def __post_init__(self) -> None:
        _check_texts(self.job_id)
        WorkState(self.state)
        fraction = self.fraction
        is_number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        if not is_number or not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction is {fraction!r:.80}")
        object.__setattr__(self, "fraction", float(fraction))


@dataclass(frozen=True)
class Result(_Payload):
    """EXECUTION_RESULT: the follower's prompt has run to its end."""

    message_type = MessageType.EXECUTION_RESULT

    job_id: str
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """What ComfyUI's history tells of its output nodes."""

    def __post_init__(self) -> None:
        _check_texts(self.job_id)
        if not isinstance(self.outputs, Mapping):
            raise ValueError("outputs is no object")


class Failure(str, Enum):
    """Why an order came to nothing."""

    REFUSED = "refused"
    """It was never queued: something is missing there."""
    LOST = "lost"
    """The instance cannot take part: its own cluster has failed, or it lost another instance that
    it needed. Others do its share, as if it were gone."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Trouble(_Payload):
    """EXECUTION_ERROR."""

    message_type = MessageType.EXECUTION_ERROR

    job_id: str
    failure: str
    message: str
    node: str = ""
    """The node that failed, for people."""

    def __post_init__(self) -> None:
        _check_texts(self.job_id)
        Failure(self.failure)
        for name in ("message", "node"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{name} is no text")
            object.__setattr__(self, name, value[:LARGEST_TEXT])


@dataclass(frozen=True)
class Cancel(_Payload):
    """EXECUTION_CANCEL: the leader does not want it any more."""

    message_type = MessageType.EXECUTION_CANCEL

    job_id: str
    reason: str = ""

    def __post_init__(self) -> None:
        _check_texts(self.job_id, self.reason or "-")


def _plain(value: object) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


_LONGEST_ID = 200  # characters of job and prompt ids; what transfer keys have room for


def _check_texts(*values: object) -> None:
    for value in values:
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_ID:
            raise ValueError(f"expected a text of 1 to {_LONGEST_ID} characters, got {value!r:.80}")


def _integers(values: object) -> tuple[int, ...]:
    if not isinstance(values, list | tuple):
        raise ValueError("expected a list of integers")
    if any(not isinstance(each, int) or isinstance(each, bool) or each < 0 for each in values):
        raise ValueError("expected integers from 0 on")
    return tuple(values)


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(each, str) for each in values):
        raise ValueError("expected a list of texts")
    return tuple(values)


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, Mapping) or not prompt:
        raise ValueError("the prompt is empty")
    for node in prompt.values():
        if not isinstance(node, Mapping) or not isinstance(node.get("class_type"), str):
            raise ValueError("a node without class_type")
        if not isinstance(node.get("inputs"), Mapping):
            raise ValueError("a node without inputs")
