"""A workflow file as a prompt: either of ComfyUI's formats, with other inputs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfy_cluster.errors import WorkflowError
from comfy_cluster.workflows.prompt import Prompt, ancestors_of, link_of, name_of
from comfy_cluster.workflows.regions import BROADCASTS, ENDS, FAN_OUTS
from comfy_cluster.workflows.ui_format import is_ui_format, to_prompt

EXECUTE = "ClusterExecuteWorkflow"
EXECUTE_CURRENT = "ClusterExecuteCurrentWorkflow"


def file_prompt(
    workflow_path: str, *, read: Callable[[str], Any], node_type: Callable[[str], Any]
) -> dict[str, dict[str, Any]]:
    """The prompt of a file. `read(path)` gives its parsed JSON.

    `WorkflowError`: no workflow, or one that runs itself, also by way of others.
    """
    prompt = _prompt_of(workflow_path, read(workflow_path), node_type)
    _check_no_recursion(workflow_path, prompt, (workflow_path,), read, node_type)
    return prompt


def _prompt_of(
    workflow_path: str, workflow: Any, node_type: Callable[[str], Any]
) -> dict[str, dict[str, Any]]:
    if is_ui_format(workflow):
        return to_prompt(workflow, node_type)
    is_prompt = isinstance(workflow, dict) and all(
        isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
        for node in workflow.values()
    )
    if not is_prompt or not workflow:
        raise WorkflowError(
            f"{workflow_path} is no ComfyUI workflow: neither as the page saves it (nodes, links) "
            "nor in the API format (class_type, inputs)"
        )
    return {str(node_id): node for node_id, node in workflow.items()}


def _check_no_recursion(
    workflow_path: str,
    prompt: Prompt,
    path: tuple[str, ...],
    read: Callable[[str], Any],
    node_type: Callable[[str], Any],
) -> None:
    for node_id, node in sorted(prompt.items()):
        if node["class_type"] == EXECUTE_CURRENT:
            raise WorkflowError(
                f"{workflow_path}: {name_of(prompt, node_id)} cannot run inside of another workflow"
            )
        inner = node["inputs"].get("workflow_path")
        if node["class_type"] != EXECUTE or not isinstance(inner, str):
            continue
        if inner in path:
            raise WorkflowError(f"the workflow runs itself: {' > '.join((*path, inner))}")
        inner_prompt = _prompt_of(inner, read(inner), node_type)
        _check_no_recursion(inner, inner_prompt, (*path, inner), read, node_type)


def with_inputs(
    prompt: Prompt, inputs: Mapping[str, Any], workflow_path: str
) -> dict[str, dict[str, Any]]:
    """The prompt with other values: `inputs` by `"node_id.input"`. WorkflowError: no such one."""
    changed = {
        node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()
    }
    for place, value in inputs.items():
        node_id, name = _split_place(str(place), changed)
        if node_id not in changed:
            raise WorkflowError(
                f"inputs: {place!r} names no node of {workflow_path}; it has "
                f"{', '.join(sorted(changed))}"
            )
        known = changed[node_id]["inputs"]
        if name not in known:
            raise WorkflowError(
                f"inputs: {name_of(prompt, node_id)} of {workflow_path} has no input {name!r}; it "
                f"has {', '.join(sorted(known))}"
            )
        if link_of(value) is not None:
            raise WorkflowError(f"inputs: {place!r} must be a value, not a link")
        known[name] = value
    return changed


def _split_place(place: str, prompt: Prompt) -> tuple[str, str]:
    """Node id and input name, both of which may have dots."""
    splits = [(place[:at], place[at + 1 :]) for at, letter in enumerate(place) if letter == "."]
    for node_id, name in splits:
        if node_id in prompt and name in prompt[node_id]["inputs"]:
            return node_id, name
    node_id, _, name = place.rpartition(".")
    return node_id, name


def check_waits(prompt: Prompt) -> None:
    """WorkflowError if an instance could wait for itself in a workflow that runs on all of them.

    Who runs the workflow waits for what the leader sends; a node that waits until the others have
    run something must not come before that.
    """
    waiting = {
        each for each, node in prompt.items() if node["class_type"] in (EXECUTE, EXECUTE_CURRENT)
    }
    for node_id, node in sorted(prompt.items()):
        if node["class_type"] not in FAN_OUTS | ENDS | BROADCASTS:
            continue
        if before := sorted(waiting & ancestors_of(prompt, [node_id], stops=frozenset())):
            raise WorkflowError(
                f"{name_of(prompt, node_id)} depends on {name_of(prompt, before[0])}, which waits "
                "until the other instances are done; they would wait for this node meanwhile"
            )
