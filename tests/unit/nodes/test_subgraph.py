"""The nodes around reusable parts; what a use expands to is tested in workflows/."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_cluster.errors import WorkflowError
from comfy_cluster.nodes.subgraph import (
    ClusterEndSubgraph,
    ClusterStartSubgraph,
    ClusterUseSubgraph,
)
from tests.unit.nodes.fakes import FakeWork, execute, make
from tests.unit.workflows.prompts import prompt_of

PROMPT = prompt_of("""
    1 LoadImage image=a
    2 ClusterStartSubgraph input=1.0 subgraph_id=soft
    3 ImageBlur image=2.0 blur_radius=3
    4 ClusterEndSubgraph input=3.0
    5 ClusterStartSubgraph input=1.0 subgraph_id=softer
    6 ClusterUseSubgraph input=5.0 subgraph_id=soft
    7 ClusterEndSubgraph input=6.0
    8 ClusterUseSubgraph input=7.0 subgraph_id=softer
    9 ClusterUseSubgraph input=7.0 subgraph_id=hard
""")


def use(node_id: str, prompt: dict[str, Any] = PROMPT, **expanded: Any) -> Any:
    """What a use returns; `expanded`: nodes that ComfyUI made of others."""
    return execute(
        make(ClusterUseSubgraph, FakeWork(expanded=expanded)),
        input=["an image"],
        subgraph_id=[""],
        unique_id=[node_id],
        prompt=[prompt],
        dynprompt=[None],
    )


def test_start_and_end_pass_their_input_on() -> None:
    value = object()
    assert execute(make(ClusterStartSubgraph), input=value, subgraph_id="soft") == (value,)
    assert execute(make(ClusterEndSubgraph), input=value) == (value,)


def test_a_use_is_expanded_to_the_part_and_a_collector() -> None:
    returned = use("8")
    assert returned["expand"] == {
        "8.6": {
            "class_type": "ClusterUseSubgraph",
            "inputs": {"input": ["7", 0], "subgraph_id": "soft"},
        },
        "8.7": {
            "class_type": "ClusterUseSubgraph",
            "inputs": {"input": ["8.6", 0], "collects": True},
        },
    }
    assert returned["result"] == (["8.7", 0],)


def test_a_use_in_a_copy_is_expanded_from_the_original_part() -> None:
    copies = use("8")["expand"]
    returned = use("8.6", **copies)
    assert returned["expand"]["8.6.3"]["inputs"] == {"image": ["7", 0], "blur_radius": "3"}
    assert returned["result"] == (["8.6.4", 0],)


def test_a_collector_makes_one_value_of_a_list() -> None:
    """ComfyUI then strings the values of that list together again."""
    node = make(ClusterUseSubgraph)
    hidden = {"unique_id": ["8.7"], "prompt": [PROMPT], "dynprompt": [None]}
    assert execute(node, input=["a", "b"], collects=[True], **hidden) == ([["a", "b"]],)
    assert ClusterUseSubgraph.INPUT_IS_LIST is True
    assert ClusterUseSubgraph.OUTPUT_IS_LIST == (True,)


def test_comfyui_hands_the_mark_of_a_collector_on() -> None:
    """It drops constants that a node does not declare."""
    hidden = ClusterUseSubgraph.INPUT_TYPES()["hidden"]
    assert set(use("8")["expand"]["8.7"]["inputs"]) - {"input"} <= set(hidden)


def test_a_use_sees_changes_of_its_part() -> None:
    """ComfyUI does not know that a use depends on it."""
    changed = ClusterUseSubgraph.IS_CHANGED(input=None, subgraph_id=["soft"])
    assert changed != changed


def test_an_unknown_part_is_told_with_those_that_there_are() -> None:
    with pytest.raises(WorkflowError, match=r"node 9 .*'hard' \(there are: 'soft', 'softer'\)"):
        use("9")


def test_recursion_is_refused_before_anything_is_expanded() -> None:
    prompt = prompt_of("""
        1 ClusterStartSubgraph input=a subgraph_id=x
        2 ClusterUseSubgraph input=1.0 subgraph_id=y
        3 ClusterEndSubgraph input=2.0
        4 ClusterStartSubgraph input=a subgraph_id=y
        5 ClusterUseSubgraph input=4.0 subgraph_id=x
        6 ClusterEndSubgraph input=5.0
        7 ClusterUseSubgraph input=b subgraph_id=x
    """)
    with pytest.raises(WorkflowError, match=r"node 5 .*: the subgraph uses itself: x > y > x"):
        use("7", prompt)
