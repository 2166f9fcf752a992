"""ComfyUI's answer to a prompt, in the words of who waits for it elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from comfy_cluster.comfyui.validation import validate, validated_outputs
from comfy_cluster.errors import WorkflowError
from tests.unit.workflows.prompts import prompt_of

PROMPT = prompt_of("1 Loader name=big\n2 Blur images=1.0\n3 SaveImage images=2.0")
CLASSES = {"Loader": object, "Blur": object, "SaveImage": object}
VALID: Any = (True, None, ["3"], {})


def old_sync(prompt: Any) -> Any:  # until 0.3.44
    return VALID if prompt is PROMPT else None


async def with_id(prompt_id: str, prompt: Any) -> Any:  # 0.3.45 to 0.3.47
    return VALID if (prompt_id, prompt) == ("id", PROMPT) else None


async def with_partial(prompt_id: str, prompt: Any, partial_execution_list: Any) -> Any:
    is_right = (prompt_id, prompt, partial_execution_list) == ("id", PROMPT, None)
    return VALID if is_right else None


def refusing(error: Any, node_errors: dict[str, Any], outputs: list[str] | None = None) -> Any:
    async def validate_prompt(prompt_id: str, prompt: Any, partial: Any) -> Any:
        return bool(outputs), error, outputs or [], node_errors

    return validate_prompt


def outputs_of(validate_prompt: Any, classes: Any = CLASSES) -> list[str]:
    return asyncio.run(
        validated_outputs(PROMPT, "id", validate_prompt=validate_prompt, node_classes=classes)
    )


@pytest.mark.parametrize("validate_prompt", [old_sync, with_id, with_partial])
def test_each_age_is_asked_as_it_wants_to_be(validate_prompt: Any) -> None:
    assert outputs_of(validate_prompt) == ["3"]
    found = asyncio.run(validate(validate_prompt, PROMPT, prompt_id="id"))
    assert found == (True, None, ["3"], {})


def test_what_is_not_installed_is_told_before_comfyui_is_asked() -> None:
    with pytest.raises(WorkflowError) as info:
        outputs_of(None, {"Loader": object})
    assert str(info.value) == (
        "lacks node class Blur (node 2 (Blur)), SaveImage (node 3 (SaveImage)): install the same "
        "custom nodes on every instance"
    )


def test_a_file_that_is_not_there() -> None:
    extra = {"input_name": "name", "received_value": "big"}
    error = {"type": "value_not_in_list", "message": "Value not in list", "extra_info": extra}
    with pytest.raises(
        WorkflowError, match=r"^lacks 'big', which node 1 \(Loader\) wants as name$"
    ):
        outputs_of(refusing({"message": "failed"}, {"1": {"errors": [error]}}))


def test_any_other_error_of_a_node() -> None:
    error = {"type": "bad", "message": "Required input is missing", "details": "images"}
    with pytest.raises(WorkflowError) as info:
        outputs_of(refusing(None, {"2": {"errors": [error, {"message": "so"}]}}))
    assert str(info.value) == (
        "cannot run node 2 (Blur): Required input is missing: images; cannot run node 2 (Blur): so"
    )


def test_one_output_that_cannot_run_is_enough() -> None:
    error = {"type": "bad", "message": "no"}
    with pytest.raises(WorkflowError, match="cannot run node 2"):
        outputs_of(refusing(None, {"2": {"errors": [error]}}, ["3"]))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            {"message": "Prompt has no outputs", "details": ""},
            "cannot run it: Prompt has no outputs",
        ),
        ("just no", "cannot run it: just no"),
        ({}, "cannot run it: invalid"),
    ],
)
def test_a_prompt_that_is_wrong_as_a_whole(error: Any, text: str) -> None:
    with pytest.raises(WorkflowError, match=f"^{text}$"):
        outputs_of(refusing(error, {}))


def test_long_lists_of_troubles_are_cut() -> None:
    errors = [{"message": f"trouble {number}"} for number in range(20)]
    with pytest.raises(WorkflowError) as info:
        outputs_of(refusing(None, {"2": {"errors": errors}}))
    assert str(info.value).count("trouble") == 5
