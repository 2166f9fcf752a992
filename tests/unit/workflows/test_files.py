"""Workflow files as prompts: formats, recursion, other inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from comfy_cluster.errors import WorkflowError
from comfy_cluster.work.host import NodeType
from comfy_cluster.workflows.files import file_prompt, with_inputs
from comfy_cluster.workflows.widgets import Widget
from tests.unit.workflows.prompts import prompt_of

PART = prompt_of("1 LoadImage image=a\n2 Blur images=1.0 radius=2\n3 SaveImage images=2.0")


def node_type(class_type: str) -> NodeType:
    if class_type == "LoadImage":
        return NodeType({"image": "COMBO"}, ("IMAGE", "MASK"), widgets=(Widget("image", "a.png"),))
    return NodeType({"images": "IMAGE"}, is_output=True)


def read(files: Mapping[str, Any], path: str) -> dict[str, dict[str, Any]]:
    return file_prompt(path, read=lambda each: copy.deepcopy(files[each]), node_type=node_type)


def calling(path: Any) -> dict[str, Any]:
    return {"9": {"class_type": "ClusterExecuteWorkflow", "inputs": {"workflow_path": path}}}


def test_the_api_format() -> None:
    assert read({"a.json": PART}, "a.json") == PART


def test_the_format_of_the_page() -> None:
    workflow = {
        "nodes": [
            {
                "id": 1,
                "type": "LoadImage",
                "inputs": [],
                "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
                "widgets_values": ["b.png", "image"],
                "mode": 0,
            },
            {
                "id": 2,
                "type": "SaveImage",
                "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
                "outputs": [],
                "mode": 0,
            },
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    }
    prompt = read({"a.json": workflow}, "a.json")
    assert {each: node["class_type"] for each, node in prompt.items()} == {
        "1": "LoadImage",
        "2": "SaveImage",
    }
    assert prompt["2"]["inputs"]["images"] == ["1", 0]
    assert prompt["1"]["inputs"]["image"] == "b.png"


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        None,
        "text",
        5,
        {"1": "node"},
        {"1": {"class_type": "Blur"}},
        {"1": {"inputs": {}}},
        {"1": {"class_type": "Blur", "inputs": []}},
        {"nodes": 5, "links": []},
    ],
)
def test_what_is_no_workflow(content: Any) -> None:
    with pytest.raises(WorkflowError, match=r"^a\.json is no ComfyUI workflow"):
        read({"a.json": content}, "a.json")


def test_files_may_run_files() -> None:
    files = {"a": calling("b") | PART, "b": calling("c"), "c": PART}
    assert read(files, "a").keys() == {"1", "2", "3", "9"}


def test_one_file_may_be_run_twice() -> None:
    files = {"a": {**calling("b"), "8": calling("b")["9"]}, "b": PART}
    assert read(files, "a").keys() == {"8", "9"}


@pytest.mark.parametrize(
    ("files", "path"),
    [
        ({"a": calling("a")}, "a > a"),
        ({"a": calling("b"), "b": calling("c"), "c": calling("a")}, "a > b > c > a"),
        ({"a": calling("b"), "b": calling("b")}, "a > b > b"),
        ({"a": calling("./a"), "./a": calling("./a")}, r"a > \./a > \./a"),
    ],
)
def test_recursion_is_an_error_that_names_the_way(files: dict[str, Any], path: str) -> None:
    with pytest.raises(WorkflowError, match=f"the workflow runs itself: {path}"):
        read(files, "a")


def test_a_path_that_comes_over_a_link_is_not_followed() -> None:
    assert read({"a": calling(["1", 0]) | PART}, "a")


def test_the_current_workflow_has_no_place_in_a_file() -> None:
    files = {"a": calling("b"), "b": prompt_of("5 ClusterExecuteCurrentWorkflow trigger=0")}
    with pytest.raises(WorkflowError, match=r"b: node 5 .* cannot run inside of another workflow"):
        read(files, "a")


def test_other_inputs() -> None:
    before = copy.deepcopy(PART)
    changed = with_inputs(PART, {"2.radius": 5, "1.image": [1, 2, 3]}, "a.json")
    assert changed["2"]["inputs"] == {"images": ["1", 0], "radius": 5}
    assert changed["1"]["inputs"] == {"image": [1, 2, 3]}
    assert before == PART


def test_a_link_may_become_a_value() -> None:
    assert with_inputs(PART, {"3.images": None}, "a")["3"]["inputs"] == {"images": None}


def test_ids_may_have_dots_and_colons() -> None:
    prompt = {"12:3.1": {"class_type": "Blur", "inputs": {"radius": 1}}}
    assert with_inputs(prompt, {"12:3.1.radius": 2}, "a")["12:3.1"]["inputs"] == {"radius": 2}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"7.radius": 1}, r"'7\.radius' names no node of a\.json; it has 1, 2, 3"),
        ({"radius": 1}, r"'radius' names no node"),
        ({5: 1}, r"5 names no node"),
        ({"2.size": 1}, r"node 2 \(Blur\) of a\.json has no input 'size'; it has images, radius"),
        ({"2.images": ["1", 0]}, r"'2\.images' must be a value, not a link"),
    ],
)
def test_inputs_that_are_not_there(inputs: dict[Any, Any], message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        with_inputs(PART, inputs, "a.json")
