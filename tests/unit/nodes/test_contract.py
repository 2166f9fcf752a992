"""The contract with saved workflows: every node's id, inputs and outputs, and what explains it."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from comfy_cluster.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from tests.unit.nodes.fakes import input_types

HELP_PAGES = Path(__file__).resolve().parents[3] / "comfy_cluster" / "web" / "docs"
CATEGORIES = {
    "Cluster",
    "Cluster/Image",
    "Cluster/Latent",
    "Cluster/Mask",
    "Cluster/Batch",
    "Cluster/Workflow",
    "Cluster/Memory",
}
HELP_HEADINGS = ["Inputs", "Outputs", "Example", "On one instance", "Errors"]


@dataclass(frozen=True)
class Contract:
    """A row of the specification's table."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


FREE = Contract(
    inputs=("trigger", "unload_models", "free_memory"),
    outputs=("trigger",),
    defaults={"unload_models": True, "free_memory": True},
)
CONTRACTS = {
    "ClusterInfo": Contract((), ("info", "instance_index", "instance_count")),
    "ClusterFreeNow": FREE,
    "ClusterFinallyFree": FREE,
    "ClusterExecuteWorkflow": Contract(
        ("workflow_path", "inputs"), ("results",), optional=("trigger",)
    ),
    "ClusterExecuteCurrentWorkflow": Contract(("trigger",), ("results",)),
    "ClusterStartSubgraph": Contract(("input", "subgraph_id"), ("output",)),
    "ClusterEndSubgraph": Contract(("input",), ("output",)),
    "ClusterUseSubgraph": Contract(("input", "subgraph_id"), ("output",)),
    "ClusterBroadcastTensor": Contract(("tensor",), ("tensor",)),
    "ClusterListenTensorBroadcast": Contract((), ("tensor",)),
    "ClusterBroadcastLoadedImage": Contract(("image",), ("image", "mask")),
    "ClusterFanOutImage": Contract(("images",), ("image_slice",)),
    "ClusterFanOutLatent": Contract(("latent",), ("latent_slice",)),
    "ClusterFanOutMask": Contract(("masks",), ("mask_slice",)),
    "ClusterFanInImages": Contract(("images",), ("combined_images",)),
    "ClusterFanInLatents": Contract(("latent",), ("combined_latent",)),
    "ClusterFanInMasks": Contract(("masks",), ("combined_masks",)),
    "ClusterGatherImages": Contract(("images",), ("all_images",)),
    "ClusterGatherLatents": Contract(("latent",), ("all_latents",)),
    "ClusterGatherMasks": Contract(("masks",), ("all_masks",)),
    "ClusterGetInstanceWorkItemFromBatch": Contract(
        ("batch",), ("item",), optional=("index_offset",), defaults={"index_offset": 0}
    ),
    "ClusterSplitBatchToList": Contract(
        ("batch", "items_per_element"), ("list",), defaults={"items_per_element": 1}
    ),
    "ClusterFlattenBatchedImageList": Contract(("batched_list",), ("flat_list",)),
    "ClusterInsertAtIndex": Contract(("list", "item", "index"), ("list",)),
    "ClusterStridedReorder": Contract(("list", "stride"), ("reordered_list",)),
}
# ComfyUI hands a list of values to these, or takes one, as the table says.
LIST_OUTPUTS = {
    "ClusterGatherImages": "all_images",
    "ClusterGatherLatents": "all_latents",
    "ClusterGatherMasks": "all_masks",
    "ClusterSplitBatchToList": "list",
    "ClusterFlattenBatchedImageList": "flat_list",
}
TYPES = {
    "images": "IMAGE",
    "masks": "MASK",
    "latent": "LATENT",
    "unload_models": "BOOLEAN",
    "free_memory": "BOOLEAN",
    "subgraph_id": "STRING",
    "workflow_path": "STRING",
    "index": "INT",
    "index_offset": "INT",
    "items_per_element": "INT",
    "stride": "INT",
    "trigger": "*",
    "tensor": "*",
    "input": "*",
    "batch": "*",
    "batched_list": "*",
    "list": "*",
    "item": "*",
}
each_node = pytest.mark.parametrize("node_id", CONTRACTS)


def test_there_are_all_nodes_and_no_others() -> None:
    assert len(CONTRACTS) == 25
    assert NODE_CLASS_MAPPINGS.keys() == CONTRACTS.keys()


@each_node
def test_names_and_defaults_of_inputs_and_outputs(node_id: str) -> None:
    contract, node_class = CONTRACTS[node_id], NODE_CLASS_MAPPINGS[node_id]
    declared = input_types(node_class)
    required, optional = declared["required"], declared.get("optional", {})
    assert declared.keys() <= {"required", "optional", "hidden"}
    assert (tuple(required), tuple(optional)) == (contract.inputs, contract.optional)
    assert contract.outputs == node_class.RETURN_NAMES
    for name, default in contract.defaults.items():
        assert {**required, **optional}[name][1]["default"] == default


@each_node
def test_types_of_inputs_and_outputs(node_id: str) -> None:
    node_class = NODE_CLASS_MAPPINGS[node_id]
    declared = input_types(node_class)
    for name, (kind, *_) in {**declared["required"], **declared.get("optional", {})}.items():
        if name in TYPES:
            assert str(kind) == TYPES[name], name
    assert len(node_class.RETURN_TYPES) == len(node_class.RETURN_NAMES)
    if node_id in LIST_OUTPUTS:
        lists = getattr(node_class, "OUTPUT_IS_LIST", ())
        assert lists[node_class.RETURN_NAMES.index(LIST_OUTPUTS[node_id])]


@each_node
def test_numbers_have_bounds(node_id: str) -> None:
    """Without them ComfyUI's page allows 0 to 2048 only."""
    declared = input_types(NODE_CLASS_MAPPINGS[node_id])
    for kind, options in {**declared["required"], **declared.get("optional", {})}.values():
        if kind == "INT":
            assert options["min"] <= options["default"] <= options["max"]


@each_node
def test_a_node_explains_itself(node_id: str) -> None:
    node_class = NODE_CLASS_MAPPINGS[node_id]
    declared = input_types(node_class)
    assert node_class.__name__ == node_id
    assert NODE_DISPLAY_NAME_MAPPINGS[node_id] == node_class.TITLE
    assert node_class.TITLE.replace(" ", "") == node_id
    assert node_class.CATEGORY in CATEGORIES
    assert is_sentence(node_class.DESCRIPTION)
    assert len(node_class.OUTPUT_TOOLTIPS) == len(node_class.RETURN_NAMES)
    assert all(map(is_sentence, node_class.OUTPUT_TOOLTIPS))
    for name, (_, options) in {**declared["required"], **declared.get("optional", {})}.items():
        assert is_sentence(options["tooltip"]), name


def is_sentence(text: str) -> bool:
    return text[:1].isupper() and text.endswith(".") and "  " not in text


@each_node
def test_a_node_can_be_run_by_comfyui(node_id: str) -> None:
    node_class = NODE_CLASS_MAPPINGS[node_id]
    assert node_class.FUNCTION == "execute"
    function = node_class.execute  # type: ignore[attr-defined]
    assert inspect.iscoroutinefunction(function), "others go on while it waits"
    signature = inspect.signature(function)
    declared = input_types(node_class)
    names = {name for group in declared.values() for name in group}
    signature.bind(None, **dict.fromkeys(names))
    signature.bind(None, **dict.fromkeys(names - set(declared.get("optional", {}))))


@each_node
def test_a_node_has_a_help_page(node_id: str) -> None:
    contract = CONTRACTS[node_id]
    text = (HELP_PAGES / f"{node_id}.md").read_text(encoding="utf-8")
    title, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    assert title.startswith(f"# {NODE_CLASS_MAPPINGS[node_id].TITLE}\n")
    assert [section.split("\n", 1)[0] for section in sections] == HELP_HEADINGS
    explained = [re.findall(r"^- \*\*`(\w+)`\*\*", section, re.MULTILINE) for section in sections]
    assert explained[0] == [*contract.inputs, *contract.optional]
    assert explained[1] == [*contract.outputs]
    assert not re.search(r"</?[a-zA-Z!]", text), "no HTML"


def test_every_help_page_is_of_a_node() -> None:
    assert {path.stem for path in HELP_PAGES.glob("*")} == set(CONTRACTS)
