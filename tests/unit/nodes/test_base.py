"""What all nodes have in common."""

from __future__ import annotations

import json
import operator

from comfy_cluster.nodes.base import ANY, HIDDEN, AlwaysRuns, ClusterNode, class_mappings, described
from comfy_cluster.nodes.info import ClusterInfo
from tests.unit.nodes.fakes import make


def test_a_link_of_any_type_is_accepted_in_both_directions() -> None:
    """As ComfyUI before 0.4 asks: `received != wanted`."""
    assert not operator.ne("IMAGE", ANY)
    assert not operator.ne(ANY, "IMAGE")


def test_any_type_is_no_number() -> None:
    """Of an input of type `INT` ComfyUI makes a number."""
    assert [name == ANY for name in ("INT", "FLOAT", "STRING", "BOOLEAN")] == [False] * 4
    assert ANY == "*" and hash(ANY) == hash("*") and json.dumps(ANY) == '"*"'


def test_an_input_has_its_tooltip_beside_its_options() -> None:
    assert described("INT", "How many.", min=1) == ("INT", {"tooltip": "How many.", "min": 1})


def test_a_node_that_always_runs_never_looks_as_before() -> None:
    first, second = AlwaysRuns.IS_CHANGED(), AlwaysRuns.IS_CHANGED(trigger=None)
    assert first is not second
    assert first != first and second != second


def test_a_call_takes_hidden_inputs_alone_and_in_lists() -> None:
    node = make(ClusterNode)
    prompt = {"7": {"class_type": "ClusterInfo", "inputs": {}}}
    plain = node.call(unique_id="7", prompt=prompt, dynprompt=None)
    listed = node.call(unique_id=["7"], prompt=[prompt], dynprompt=[None])
    assert plain == listed
    assert (plain.node_id, plain.original) == ("7", prompt)


def test_hidden_inputs_tell_comfyui_to_keep_nodes_apart() -> None:
    """Its cache looks for the text itself among them."""
    assert "UNIQUE_ID" in HIDDEN.values()
    assert ClusterNode.NOT_IDEMPOTENT is True


def test_node_ids_are_class_names() -> None:
    assert class_mappings(ClusterInfo) == {"ClusterInfo": ClusterInfo}
