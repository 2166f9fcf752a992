"""ComfyUI's validation of a prompt, and its answer in the words of who waits for it elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from comfy_cluster.errors import WorkflowError
from comfy_cluster.workflows.prompt import Prompt, name_of

_NOT_THERE = "value_not_in_list"
_SHOWN = 5  # things that are missing, named in one text


async def validated_outputs(
    prompt: Prompt, prompt_id: str, *, validate_prompt: Any, node_classes: Mapping[str, Any]
) -> list[str]:
    """The output nodes of a prompt that can run here.

    WorkflowError: something is missing or wrong; its text begins with a verb, such as "lacks".
    """
    missing = {
        node["class_type"]: name_of(prompt, node_id)
        for node_id, node in sorted(prompt.items())
        if node["class_type"] not in node_classes
    }
    if missing:
        named = ", ".join(f"{kind} ({name})" for kind, name in list(missing.items())[:_SHOWN])
        raise WorkflowError(
            f"lacks node class {named}: install the same custom nodes on every instance"
        )
    is_valid, error, outputs, node_errors = await validate(
        validate_prompt, prompt, prompt_id=prompt_id
    )
    troubles = list(_troubles(prompt, node_errors))
    if troubles:
        raise WorkflowError("; ".join(troubles[:_SHOWN]))
    if not is_valid:
        raise WorkflowError(f"cannot run it: {_text_of(error)}")
    return list(outputs)


async def validate(
    validate_prompt: Any, prompt: Prompt, *, prompt_id: str = ""
) -> tuple[bool, Any, list[str], dict[str, Any]]:
    """ComfyUI's own answer, whatever its version: is it valid, why not, outputs, node errors."""
    count = len(inspect.signature(validate_prompt).parameters)
    arguments = (prompt,) if count == 1 else (prompt_id, prompt, None)[:count]
    answer = validate_prompt(*arguments)
    found = await answer if inspect.isawaitable(answer) else answer
    return (bool(found[0]), found[1], list(found[2]), dict(found[3]))


def _troubles(prompt: Prompt, node_errors: Mapping[str, Any]) -> Iterator[str]:
    for node_id, found in sorted(node_errors.items()):
        name = name_of(prompt, node_id)
        for error in found.get("errors", ()):
            extra = error.get("extra_info") or {}
            if error.get("type") == _NOT_THERE:
                value, input_name = extra.get("received_value"), extra.get("input_name")
                yield f"lacks {value!r}, which {name} wants as {input_name}"
            else:
                yield f"cannot run {name}: {_text_of(error)}"


def _text_of(error: Any) -> str:
    if not isinstance(error, Mapping):
        return str(error)
    details = str(error.get("details") or "")
    return f"{error.get('message', 'invalid')}{f': {details}' if details else ''}"
