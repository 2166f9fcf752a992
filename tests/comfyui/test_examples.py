"""The example workflows run, from the file to the pictures, and make what one machine makes.

With tiny models and sizes, and few steps, in the place of what an artist would take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comfy_cluster.workflows.ui_format import to_prompt
from comfy_cluster.workflows.widgets import Widget, widgets_of
from tests.comfyui.client import History
from tests.comfyui.instances import ComfyCluster
from tests.comfyui.place import ROOT
from tests.comfyui.prompts import Nodes, without_regions

FOLDER = ROOT / "example_workflows"
TINY_VALUES: dict[str, dict[str, Any]] = {
    "EmptyLatentImage": {"width": 64, "height": 64},
    "ImageScale": {"width": 64, "height": 64},
    "KSampler": {"steps": 2},
    "LatentUpscaleBy": {"scale_by": 1.0},
    "ImageScaleBy": {"scale_by": 1.0},
}
# By file the number of pictures that its SaveImage nodes make.
PICTURE_COUNTS = {
    "batch_generation": 8,
    "iterative_refinement": 8 + 4 + 4,
    "parameter_sweep": 16,
    "reusable_subgraph": 4,
}
LEVEL = 1 / 255


@dataclass(frozen=True, slots=True)
class NodeType:
    widgets: tuple[Widget, ...]


def prompt_of(name: str, node_types: Mapping[str, Any]) -> Nodes:
    """The prompt of an example, made small."""

    def node_type(class_type: str) -> NodeType:
        return NodeType(widgets_of(node_types[class_type]["input"]))

    workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, node_type)
    for node in prompt.values():
        for input_name, value in TINY_VALUES.get(node["class_type"], {}).items():
            assert input_name in node["inputs"]
            node["inputs"][input_name] = value
        if node["class_type"] == "CheckpointLoaderSimple":
            node["class_type"] = "TestTinyCheckpoint"
    return prompt


def pictures_of(cluster: ComfyCluster, history: History) -> list[np.ndarray[Any, Any]]:
    """All pictures that the leader saved, 0 to 1, in order."""
    pictures = []
    for path in cluster.leader.image_paths(history):
        with Image.open(path) as image:
            pictures.append(np.asarray(image, np.float32) * LEVEL)
    return pictures


def assert_close(found: list[np.ndarray[Any, Any]], expected: list[np.ndarray[Any, Any]]) -> None:
    """Equal up to one level: rounding differs with the size of a batch."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() < 1.5 * LEVEL


@pytest.mark.parametrize("name", PICTURE_COUNTS)
def test_an_example_makes_what_one_machine_makes(cluster: ComfyCluster, name: str) -> None:
    client = cluster.leader.client
    prompt = prompt_of(name, client.get("/object_info"))
    pictures = pictures_of(cluster, client.run(prompt))
    assert len(pictures) == PICTURE_COUNTS[name]
    for one, other in combinations(pictures, 2):
        assert one.shape != other.shape or np.abs(one - other).max() > 10 * LEVEL
    assert_close(pictures, pictures_of(cluster, client.run(without_regions(prompt))))


def test_the_style_grid_paints_each_style_on_its_instance(
    cluster: ComfyCluster, unique: str
) -> None:
    names = [f"{unique}-{style}.png" for style in range(4)]
    photographs = sorted((cluster.leader.folder / "input" / "photographs").glob("*.png"))
    for name, photograph in zip(names, photographs, strict=False):
        (cluster.leader.folder / "input" / name).write_bytes(photograph.read_bytes())
    client = cluster.leader.client
    prompt = prompt_of("style_grid", client.get("/object_info"))
    loaders = [
        node for node in prompt.values() if node["class_type"] == "ClusterBroadcastLoadedImage"
    ]
    for node, name in zip(loaders, names, strict=True):
        node["inputs"]["image"] = name
    pictures = pictures_of(cluster, client.run_on_cluster(prompt))
    assert len(pictures) == 8
    expected = []
    for style in range(4):
        alone = without_regions(prompt)
        for node in alone.values():
            if node["class_type"] == "ClusterBroadcastLoadedImage":
                node["class_type"] = "LoadImage"
            elif node["class_type"] == "ClusterGetInstanceWorkItemFromBatch":
                inputs = {"image": node["inputs"]["batch"], "batch_index": style, "length": 1}
                node.update({"class_type": "ImageFromBatch", "inputs": inputs})
        expected += pictures_of(cluster, client.run(alone))
    assert_close(pictures, expected)


def test_comfyui_offers_the_examples_as_templates(cluster: ComfyCluster) -> None:
    offered = cluster.leader.client.get("/workflow_templates")
    assert {*PICTURE_COUNTS, "style_grid"} <= {name for names in offered.values() for name in names}
