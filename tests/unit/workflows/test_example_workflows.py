"""The example workflows are whole: what the page loads is what their text promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comfy_cluster.nodes import NODE_CLASS_MAPPINGS
from comfy_cluster.workflows.regions import find_regions
from comfy_cluster.workflows.ui_format import to_prompt
from comfy_cluster.workflows.widgets import Widget

FOLDER = Path(__file__).resolve().parents[3] / "example_workflows"
# By file the number of regions; 0: it is for "Queue Cluster".
EXAMPLES = {
    "batch_generation": 1,
    "iterative_refinement": 3,
    "parameter_sweep": 1,
    "reusable_subgraph": 1,
    "style_grid": 0,
}


class Unknown:
    """A class that nothing is known of: the files have all names."""

    widgets: tuple[Widget, ...] = ()


def workflow_of(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content


def test_there_are_five() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_links_and_slots_agree(name: str) -> None:
    workflow = workflow_of(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    linked_inputs = set()
    for link_id, origin, origin_slot, target, target_slot, kind in workflow["links"]:
        output = nodes[origin]["outputs"][origin_slot]
        assert link_id in output["links"]
        assert kind == output["type"]
        assert nodes[target]["inputs"][target_slot]["link"] == link_id
        linked_inputs.add((target, target_slot))
    for node in nodes.values():
        for slot, each in enumerate(node["inputs"]):
            if each["link"] is None:  # then it has a value, or is optional
                assert "widget" in each, f"node {node['id']} lacks {each['name']}"
            else:
                assert (node["id"], slot) in linked_inputs


@pytest.mark.parametrize("name", EXAMPLES)
def test_cluster_nodes_are_as_their_classes_are(name: str) -> None:
    for node in workflow_of(name)["nodes"]:
        if node["type"].startswith("Cluster"):
            node_class = NODE_CLASS_MAPPINGS[node["type"]]
            names = tuple(output["name"] for output in node["outputs"])
            assert names == node_class.RETURN_NAMES
            types = tuple(output["type"] for output in node["outputs"])
            assert types == node_class.RETURN_TYPES


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_note_explains_it_and_nothing_overlaps(name: str) -> None:
    nodes = workflow_of(name)["nodes"]
    (note,) = (node for node in nodes if node["type"] == "MarkdownNote")
    assert len(note["widgets_values"][0]) > 400
    title_height = 30
    boxes = [
        (left, top - title_height, left + width, top + height)
        for node in nodes
        for (left, top), (width, height) in [(node["pos"], node["size"])]
    ]
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            is_apart = (
                one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            )
            assert is_apart, (nodes[index]["id"], one, other)


@pytest.mark.parametrize(("name", "region_count"), EXAMPLES.items())
def test_the_regions_are_found(name: str, region_count: int) -> None:
    prompt = to_prompt(workflow_of(name), lambda _: Unknown())
    if region_count:
        assert len(find_regions(prompt)) == region_count
    else:
        assert all("FanOut" not in node["class_type"] for node in prompt.values())
