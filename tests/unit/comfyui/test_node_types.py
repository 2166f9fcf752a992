"""What node classes say of themselves."""

from __future__ import annotations

from typing import Any

from comfy_cluster.comfyui.node_types import UNKNOWN, node_type_of
from comfy_cluster.nodes import NODE_CLASS_MAPPINGS
from comfy_cluster.workflows.widgets import Widget


class Any_(str):
    pass


class Sampler:
    RETURN_TYPES = ("LATENT", Any_("*"))
    OUTPUT_IS_LIST = (False, True)
    INPUT_IS_LIST = True
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "name": (["a", "b"], {"tooltip": "which"}),
                "seed": ("INT", {"default": 3}),
            },
            "optional": {"mask": ("MASK", {})},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }


class Plain:
    RETURN_TYPES = ()
    OUTPUT_IS_LIST = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}, "optional": None}


def test_a_class_with_everything() -> None:
    found = node_type_of(Sampler)
    assert found.input_types == {"model": "MODEL", "name": "COMBO", "seed": "INT", "mask": "MASK"}
    assert found.output_types == ("LATENT", "*")
    assert [found.makes_list(output) for output in range(3)] == [False, True, False]
    assert found.takes_lists and found.is_output and found.is_known
    assert found.widgets == (Widget("name", "a"), Widget("seed", 3, 1))


def test_a_class_with_the_least() -> None:
    found = node_type_of(Plain)
    assert (found.input_types, found.output_types, found.widgets) == ({}, (), ())
    assert not found.takes_lists and not found.is_output and found.is_known


def test_a_class_that_is_not_there() -> None:
    assert node_type_of(None) is UNKNOWN
    assert not UNKNOWN.is_known


def test_our_own_nodes() -> None:
    fan_out = node_type_of(NODE_CLASS_MAPPINGS["ClusterFanOutLatent"])
    assert fan_out.output_types == ("LATENT",) and fan_out.makes_list(0) and fan_out.takes_lists
    assert node_type_of(NODE_CLASS_MAPPINGS["ClusterFanInImages"]).is_output
