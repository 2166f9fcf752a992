"""Reusable parts of a workflow."""

from __future__ import annotations

import pytest

from comfy_cluster.errors import WorkflowError
from comfy_cluster.workflows.subgraphs import (
    COLLECTS,
    expand_all,
    expand_in_place,
    expand_use,
    find_subgraph,
)
from tests.unit.workflows.prompts import prompt_of

BODY = """
    1 LoadImage image=a
    2 ClusterStartSubgraph input=1.0 subgraph_id=soft
    3 UpscaleModelLoader model_name=m
    4 ImageBlur image=2.0 blur_radius=3
    5 ImageUpscaleWithModel upscale_model=3.0 image=4.0
    6 ClusterEndSubgraph input=5.0
"""


def refused(text: str) -> str:
    with pytest.raises(WorkflowError) as info:
        expand_all(prompt_of(text))
    return str(info.value)


def test_the_body_is_what_lies_between() -> None:
    prompt = prompt_of(BODY + "9 ClusterUseSubgraph input=6.0 subgraph_id=soft")
    assert find_subgraph(prompt, "soft", wanted_by="9").body == {"4", "5"}


def test_a_use_is_a_copy_that_shares_the_loaders() -> None:
    prompt = prompt_of(BODY + "9 ClusterUseSubgraph input=7.1 subgraph_id=soft")
    expansion = expand_use(prompt, "9")
    assert expansion.nodes == prompt_of("""
        9.4 ImageBlur image=7.1 blur_radius=3
        9.5 ImageUpscaleWithModel upscale_model=3.0 image=9.4.0
    """)
    assert expansion.output == ["9.5", 0]


def test_readers_of_a_use_read_its_copy() -> None:
    prompt = prompt_of(
        BODY + "8 LoadImage image=b\n 9 ClusterUseSubgraph input=8.0 subgraph_id=soft\n"
        "10 SaveImage images=9.0"
    )
    expanded = expand_all(prompt)
    assert expanded["10"]["inputs"] == {"images": ["9.5", 0]}
    assert "9" not in expanded and expanded["4"] == prompt["4"]


def test_uses_in_a_row_and_the_input_as_output() -> None:
    empty = """
        1 LoadImage image=a
        2 ClusterStartSubgraph input=1.0 subgraph_id=none
        3 ClusterEndSubgraph input=2.0
        4 ClusterUseSubgraph input=3.0 subgraph_id=none
        5 ClusterUseSubgraph input=4.0 subgraph_id=none
        6 SaveImage images=5.0
    """
    assert expand_all(prompt_of(empty))["6"]["inputs"] == {"images": ["3", 0]}


def test_a_part_may_use_another_one() -> None:
    text = (
        BODY
        + """
        11 ClusterStartSubgraph input=1.0 subgraph_id=twice
        12 ClusterUseSubgraph input=11.0 subgraph_id=soft
        13 ClusterUseSubgraph input=12.0 subgraph_id=soft
        14 ClusterEndSubgraph input=13.0
        15 ClusterUseSubgraph input=6.0 subgraph_id=twice
        16 SaveImage images=15.0
        """
    )
    expanded = expand_all(prompt_of(text))
    assert not any(node["class_type"] == "ClusterUseSubgraph" for node in expanded.values())
    source = expanded["16"]["inputs"]["images"][0]
    classes = []
    while source != "6":
        node = expanded[source]
        classes.append(node["class_type"])
        source = node["inputs"]["image"][0]
    assert classes == ["ImageUpscaleWithModel", "ImageBlur"] * 2


def test_unknown_ids_are_told_with_those_that_there_are() -> None:
    text = refused(BODY + "9 ClusterUseSubgraph input=6.0 subgraph_id=hard")
    assert text == (
        "node 9 (ClusterUseSubgraph): there is no ClusterStartSubgraph with subgraph_id 'hard' "
        "(there are: 'soft')"
    )


def test_an_id_of_two_parts_is_refused() -> None:
    other = (
        "21 ClusterStartSubgraph input=1.0 subgraph_id=soft\n 22 ClusterEndSubgraph input=21.0\n"
    )
    text = refused(BODY + other + "9 ClusterUseSubgraph input=6.0 subgraph_id=soft")
    assert "is used by several: node 2 (ClusterStartSubgraph), node 21" in text


def test_a_part_that_does_not_end_is_refused() -> None:
    text = refused("""
        1 ClusterStartSubgraph input=a subgraph_id=open
        2 ImageBlur image=1.0
        3 ClusterUseSubgraph input=b subgraph_id=open
    """)
    assert text.endswith("must lead to one ClusterEndSubgraph node; it leads to: none")


@pytest.mark.parametrize(
    "text",
    [
        """
        1 ClusterStartSubgraph input=a subgraph_id=x
        2 ClusterUseSubgraph input=1.0 subgraph_id=x
        3 ClusterEndSubgraph input=2.0
        4 ClusterUseSubgraph input=b subgraph_id=x
        """,
        """
        1 ClusterStartSubgraph input=a subgraph_id=x
        2 ClusterUseSubgraph input=1.0 subgraph_id=y
        3 ClusterEndSubgraph input=2.0
        4 ClusterStartSubgraph input=a subgraph_id=y
        5 ClusterUseSubgraph input=4.0 subgraph_id=x
        6 ClusterEndSubgraph input=5.0
        7 ClusterUseSubgraph input=b subgraph_id=x
        """,
    ],
    ids=["itself", "each other"],
)
def test_recursion_is_refused(text: str) -> None:
    assert "the subgraph uses itself: " in refused(text)


def test_a_linked_id_is_refused() -> None:
    text = refused(BODY + "9 ClusterUseSubgraph input=6.0 subgraph_id=1.0")
    assert text == "node 9 (ClusterUseSubgraph): subgraph_id must be a text, not a link"


def test_recursion_is_told_from_any_use_with_its_way() -> None:
    prompt = prompt_of("""
        1 ClusterStartSubgraph input=a subgraph_id=x
        2 ClusterUseSubgraph input=1.0 subgraph_id=x
        3 ClusterEndSubgraph input=2.0
        4 ClusterStartSubgraph input=a subgraph_id=y
        5 ClusterUseSubgraph input=4.0 subgraph_id=x
        6 ClusterEndSubgraph input=5.0
        7 ClusterUseSubgraph input=b subgraph_id=y
    """)
    with pytest.raises(WorkflowError, match=r"node 2 .*: the subgraph uses itself: y > x > x$"):
        expand_use(prompt, "7")


def test_the_same_part_twice_is_no_recursion() -> None:
    text = "9 ClusterUseSubgraph input=6.0 subgraph_id=soft\n"
    prompt = prompt_of(BODY + text + "9.9 ClusterUseSubgraph input=9.0 subgraph_id=soft")
    assert set(expand_use(prompt, "9.9").nodes) == {"9.9.4", "9.9.5"}


def test_in_place_a_collector_follows_the_copy() -> None:
    prompt = prompt_of(BODY + "9 ClusterUseSubgraph input=7.1 subgraph_id=soft")
    plain, in_place = expand_use(prompt, "9"), expand_in_place(prompt, "9")
    assert in_place.output == ["9.6", 0]
    assert in_place.nodes == {
        **plain.nodes,
        "9.6": {
            "class_type": "ClusterUseSubgraph",
            "inputs": {"input": ["9.5", 0], COLLECTS: True},
        },
    }


def test_collectors_are_not_expanded_again() -> None:
    prompt = prompt_of(BODY + "9 ClusterUseSubgraph input=7.1 subgraph_id=soft")
    assert expand_all({**prompt, **expand_in_place(prompt, "9").nodes}) == expand_all(prompt)
