"""What ComfyUI's page saves becomes the prompt that the page itself makes of it.

The files in `page/` have a workflow and the prompt that the real page (frontend 1.58.1, and 1.27.10
the same) made of it; `node_types.json` has the INPUT_TYPES of ComfyUI 0.3.64 that they need.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from comfy_cluster.errors import WorkflowError
from comfy_cluster.workflows.ui_format import is_ui_format, to_prompt
from comfy_cluster.workflows.widgets import Widget, widgets_of

FOLDER = Path(__file__).parent / "page"
NODE_TYPES = json.loads((FOLDER / "node_types.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class NodeType:
    widgets: tuple[Widget, ...] = field(default=())


def node_type(class_type: str) -> NodeType:
    return NodeType(widgets_of(NODE_TYPES.get(class_type, {})))


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow, and the page's prompt."""
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content["workflow"], content["prompt"]


def converted(workflow: dict[str, Any]) -> dict[str, Any]:
    """The prompt without the titles, which the page takes from elsewhere."""
    prompt = to_prompt(workflow, node_type)
    return {
        node_id: {name: node[name] for name in ("class_type", "inputs")}
        for node_id, node in prompt.items()
    }


def node_of(graph: dict[str, Any], class_type: str, *, nth: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = [each for each in graph["nodes"] if each["type"] == class_type][nth]
    return found


@pytest.mark.parametrize("name", ["controls", "detours", "subgraphs"])
def test_the_prompt_is_that_of_the_page(name: str) -> None:
    workflow, prompt = recorded(name)
    before = copy.deepcopy(workflow)
    assert converted(workflow) == prompt
    assert workflow == before


def test_nodes_keep_their_titles() -> None:
    workflow, _ = recorded("detours")
    prompt = to_prompt(workflow, node_type)
    titles = {node["class_type"]: node["_meta"]["title"] for node in prompt.values()}
    assert titles["ImageSharpen"] == "Sharpen a little"
    assert titles["LoadImage"] == "LoadImage"


def test_a_muted_node_leaves_its_readers_without_that_input() -> None:
    workflow, _ = recorded("detours")
    prompt = converted(workflow)
    (blend,) = (node for node in prompt.values() if node["class_type"] == "ImageBlend")
    assert "image2" not in blend["inputs"]
    assert all(node["class_type"] != "ImageInvert" for node in prompt.values())


def test_links_may_be_objects() -> None:
    workflow, prompt = recorded("controls")
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    workflow["links"] = [dict(zip(names, link, strict=True)) for link in workflow["links"]]
    assert converted(workflow) == prompt


def test_names_of_values_are_used_where_the_file_has_them() -> None:
    workflow, prompt = recorded("controls")
    sampler = node_of(workflow, "KSampler")
    names = ["seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler"]
    values = dict(zip([*names, "denoise"], sampler["widgets_values"], strict=True))
    sampler["widgets_values_named"] = {name: values[name] for name in reversed(values)}
    sampler["widgets_values"] = ["something", "else"]
    assert converted(workflow) == prompt


def test_a_file_that_was_saved_without_the_control_of_a_seed() -> None:
    workflow, prompt = recorded("controls")
    del node_of(workflow, "KSampler")["widgets_values"][1]
    del node_of(workflow, "KSamplerAdvanced")["widgets_values"][2]
    assert converted(workflow) == prompt


def test_the_control_of_the_oldest_files() -> None:
    workflow, prompt = recorded("controls")
    node_of(workflow, "KSampler")["widgets_values"][1] = True
    assert converted(workflow) == prompt


def test_a_number_after_a_seed_is_not_taken_for_its_control() -> None:
    workflow, prompt = recorded("controls")
    sampler = node_of(workflow, "KSampler")
    sampler["widgets_values"][1:3] = [1]  # no control, and one step
    (expected,) = (node for node in prompt.values() if node["class_type"] == "KSampler")
    expected["inputs"]["steps"] = 1
    assert converted(workflow) == prompt


def test_a_value_that_the_file_lacks_is_the_default() -> None:
    workflow, _ = recorded("controls")
    del node_of(workflow, "EmptyLatentImage")["widgets_values"][2]
    (empty,) = (
        node for node in converted(workflow).values() if node["class_type"] == "EmptyLatentImage"
    )
    assert empty["inputs"] == {"width": 256, "height": 320, "batch_size": 1}


def test_a_class_that_is_not_known_keeps_the_names_of_the_file() -> None:
    workflow, prompt = recorded("controls")
    assert to_prompt(workflow, lambda _: NodeType()).keys() == prompt.keys()
    for node_id, node in to_prompt(workflow, lambda _: NodeType()).items():
        assert node["inputs"] == prompt[node_id]["inputs"]


def test_values_that_are_lists_are_not_taken_for_links() -> None:
    workflow, _ = recorded("controls")
    node_of(workflow, "CLIPTextEncode")["widgets_values"] = [["a", 1]]
    (encode,) = (
        node for node in converted(workflow).values() if node["class_type"] == "CLIPTextEncode"
    )
    assert encode["inputs"]["text"] == {"__value__": ["a", 1]}


@pytest.mark.parametrize("mode", [2, 4])
def test_nothing_of_a_subgraph_that_is_switched_off_runs(mode: int) -> None:
    workflow, prompt = recorded("subgraphs")
    first = next(each for each in workflow["nodes"] if each.get("title") == "First")
    first["mode"] = mode
    found = converted(workflow)
    assert found.keys() == prompt.keys() - {"3:21:11", "3:22"}
    assert found["4:11"]["inputs"].get("image") == (["1", 0] if mode == 4 else None)


def test_values_that_a_subgraph_shows_of_its_inner_nodes() -> None:
    """Pages between 1.28 and the newest save them so."""
    workflow, prompt = recorded("subgraphs")
    definition = workflow["definitions"]["subgraphs"][0]
    definition["inputs"].pop()
    definition["links"] = [link for link in definition["links"] if link["origin_slot"] != 1]
    second = next(each for each in workflow["nodes"] if str(each["id"]) == "4")
    second["inputs"].pop()
    second["properties"]["proxyWidgets"] = [["11", "blur_radius"], ["11", "sigma"]]
    second["widgets_values"] = [7, 0.25]
    expected = prompt["4:11"]["inputs"] | {"blur_radius": 7, "sigma": 0.25}
    assert converted(workflow)["4:11"]["inputs"] == expected


def test_a_subgraph_that_uses_itself_is_refused() -> None:
    workflow, _ = recorded("subgraphs")
    definition = workflow["definitions"]["subgraphs"][0]
    node_of(definition, "ImageBlur")["type"] = definition["id"]
    with pytest.raises(WorkflowError, match="the subgraph uses itself"):
        to_prompt(workflow, node_type)


def test_links_in_a_circle_are_refused() -> None:
    workflow, _ = recorded("detours")
    node_of(workflow, "Reroute")["inputs"][0]["link"] = 2
    with pytest.raises(WorkflowError, match="in a circle"):
        to_prompt(workflow, node_type)


def test_a_group_node_is_refused_with_advice() -> None:
    workflow, _ = recorded("controls")
    node_of(workflow, "VAEDecode")["type"] = "workflow>my group"
    with pytest.raises(WorkflowError, match="convert it to a subgraph"):
        to_prompt(workflow, node_type)


@pytest.mark.parametrize(
    "broken",
    [
        {"nodes": [{"id": 1}]},
        {"nodes": [{"type": "A"}], "links": []},
        {"nodes": [{"id": 1, "type": "A"}], "links": [[1, 2]]},
        {"nodes": [{"id": 1, "type": "A", "inputs": [3]}], "links": []},
        {"nodes": None},
        {},
    ],
    ids=str,
)
def test_what_is_no_workflow_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(WorkflowError, match="not as ComfyUI's page saves it"):
        to_prompt(broken, node_type)


def test_the_two_formats_are_told_apart() -> None:
    workflow, prompt = recorded("controls")
    assert is_ui_format(workflow)
    assert not is_ui_format(prompt)
    assert not is_ui_format([])
