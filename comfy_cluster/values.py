"""What ComfyUI's links carry, as tensors and a description: images, masks, latents, lists of them.

`pack` takes values apart into their tensors, which travel as payloads, and a short JSON text that
says how they belong together; `unpack` is the inverse. Live objects (models, conditioning) have no
such form and are refused. Pure; called by `cluster/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from comfy_cluster.errors import CorruptPayload, UnsupportedTensor

# Tags of the JSON form: [tag, content].
_TENSOR, _CONSTANT, _LIST, _TUPLE, _DICT = "t", "c", "l", "u", "d"
_DEEPEST = 32  # levels of lists and dicts in one value
LARGEST_DESCRIPTION = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Packed:
    """Values taken apart."""

    description: bytes
    tensors: list[torch.Tensor] = field(default_factory=list)
    """Those that the description refers to, by index."""


def pack(value: Any) -> Packed:
    """Takes a value apart. `UnsupportedTensor` names the place of what cannot travel."""
    tensors: list[torch.Tensor] = []
    form = _form_of(value, tensors, where="value", depth=0)
    try:
        description = json.dumps(form, separators=(",", ":")).encode()
    except ValueError as error:  # an integer of thousands of digits
        raise UnsupportedTensor(f"value: {error}") from None
    if len(description) > LARGEST_DESCRIPTION:
        raise UnsupportedTensor(
            f"value: what is not a tensor in it takes {len(description)} bytes, more than "
            f"{LARGEST_DESCRIPTION}"
        )
    return Packed(description, tensors)


def tensor_count(description: bytes) -> int:
    """How many tensors `unpack` needs. `CorruptPayload`: this is no description."""
    indexes: set[int] = set()
    _value_of(_parsed(description), lambda index: indexes.add(index), depth=0)
    if indexes != set(range(len(indexes))):
        raise CorruptPayload("the description of a value refers to tensors that are not there")
    return len(indexes)


def unpack(description: bytes, tensors: Sequence[torch.Tensor]) -> Any:
    """The value that `pack` took apart. `CorruptPayload`: this is no description of these."""

    def tensor_at(index: int) -> torch.Tensor:
        if not 0 <= index < len(tensors):
            raise CorruptPayload("the description of a value refers to tensors that are not there")
        return tensors[index]

    return _value_of(_parsed(description), tensor_at, depth=0)


def _form_of(value: Any, tensors: list[torch.Tensor], *, where: str, depth: int) -> list[Any]:
    if depth > _DEEPEST:
        raise UnsupportedTensor(f"{where}: more than {_DEEPEST} levels of lists and dicts")
    if isinstance(value, torch.Tensor) and not value.is_nested:
        tensors.append(value)
        return [_TENSOR, len(tensors) - 1]
    if value is None or isinstance(value, bool | int | float | str):
        return [_CONSTANT, value]
    if isinstance(value, list | tuple):
        items = [
            _form_of(item, tensors, where=f"{where}[{index}]", depth=depth + 1)
            for index, item in enumerate(value)
        ]
        return [_LIST if isinstance(value, list) else _TUPLE, items]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return [
            _DICT,
            {
                key: _form_of(item, tensors, where=f"{where}[{key!r}]", depth=depth + 1)
                for key, item in value.items()
            },
        ]
    kind = "nested tensor" if isinstance(value, torch.Tensor) else type(value).__name__
    raise UnsupportedTensor(
        f"{where} is a {kind}, which cannot travel between instances: images, masks, latents and "
        "plain values can; models and conditioning are made on each instance"
    )


def _parsed(description: bytes) -> Any:
    try:
        return json.loads(description)
    except (ValueError, RecursionError) as error:
        raise CorruptPayload(f"not the description of a value: {error}") from None


def _value_of(form: Any, tensor_at: Any, *, depth: int) -> Any:
    if depth > _DEEPEST or not isinstance(form, list) or len(form) != 2:
        raise CorruptPayload("not the description of a value")
    tag, content = form
    if tag == _TENSOR and isinstance(content, int) and not isinstance(content, bool):
        return tensor_at(content)
    if tag == _CONSTANT and (content is None or isinstance(content, bool | int | float | str)):
        return content
    if tag in (_LIST, _TUPLE) and isinstance(content, list):
        items = [_value_of(item, tensor_at, depth=depth + 1) for item in content]
        return items if tag == _LIST else tuple(items)
    if tag == _DICT and isinstance(content, dict):
        return {key: _value_of(item, tensor_at, depth=depth + 1) for key, item in content.items()}
    raise CorruptPayload("not the description of a value")
