"""Which nodes of a workflow every instance runs on its slice."""

from __future__ import annotations

import pytest

from comfy_cluster.errors import WorkflowError
from comfy_cluster.workflows.regions import Region, find_regions
from tests.unit.workflows.prompts import TEXT_TO_IMAGE, prompt_of


def regions(text: str) -> list[Region]:
    return find_regions(prompt_of(text))


def refused(text: str) -> str:
    with pytest.raises(WorkflowError) as info:
        regions(text)
    return str(info.value)


def test_a_region_has_inner_nodes_and_what_they_read() -> None:
    assert regions(TEXT_TO_IMAGE) == [Region(("4",), ("7",), ("5", "6"), ("1", "2"))]


def test_a_prompt_without_cluster_nodes_has_none() -> None:
    assert regions("1 LoadImage image=a\n 2 SaveImage images=1.0") == []


def test_a_fan_out_may_lead_straight_to_its_end() -> None:
    text = "1 LoadImage a=b\n 2 ClusterFanOutImage images=1.0\n 3 ClusterFanInImages images=2.0"
    assert regions(text) == [Region(("2",), ("3",), (), ())]


def test_several_fan_outs_feed_one_region() -> None:
    found = regions("""
        1 LoadImage image=a
        2 ClusterFanOutImage images=1.0
        3 ClusterFanOutMask masks=1.1
        4 VAELoader vae_name=v
        5 VAEEncodeForInpaint pixels=2.0 mask=3.0 vae=4.0
        6 ClusterFanInLatents latent=5.0
    """)
    assert found == [Region(("2", "3"), ("6",), ("5",), ("4",))]


def test_one_fan_out_may_have_several_ends() -> None:
    found = regions("""
        1 LoadImage image=a
        2 ClusterFanOutImage images=1.0
        3 ImageScale image=2.0
        4 ClusterFanInImages images=3.0
        5 ImageToMask image=3.0
        6 ClusterGatherMasks masks=5.0
    """)
    assert found == [Region(("2",), ("4", "6"), ("3", "5"), ())]


def test_regions_in_a_row_come_in_order() -> None:
    found = regions("""
        1 LoadImage image=a
        9 ClusterFanOutImage images=1.0
        3 ImageScale image=9.0
        4 ClusterFanInImages images=3.0
        5 ImageBatch image1=4.0 image2=4.0
        2 ClusterFanOutImage images=5.0
        7 ImageBlur image=2.0
        8 ClusterFanInImages images=7.0
    """)
    assert [region.fan_outs for region in found] == [("9",), ("2",)]
    assert [region.inner for region in found] == [("3",), ("7",)]


def test_regions_side_by_side_stay_apart() -> None:
    found = regions(
        TEXT_TO_IMAGE
        + """
        11 LoadImage image=a
        12 ClusterFanOutImage images=11.0
        13 ImageBlur image=12.0
        14 ClusterFanInImages images=13.0
        """
    )
    assert [region.name for region in found] == ["12", "4"]


def test_ids_of_comfyuis_own_subgraphs_are_ids_like_others() -> None:
    text = """
        12:1 ClusterFanOutImage images=3.0
        3 LoadImage image=a
        12:34:5 ImageBlur image=12:1.0
        12:2 ClusterFanInImages images=12:34:5.0
    """
    assert regions(text) == [Region(("12:1",), ("12:2",), ("12:34:5",), ())]


def test_a_broadcast_may_feed_a_region() -> None:
    found = regions("""
        1 LoadImage image=a
        2 ClusterFanOutImage images=1.0
        3 ClusterBroadcastTensor tensor=1.0
        4 ImageBlend image1=2.0 image2=3.0
        5 ClusterFanInImages images=4.0
    """)
    assert found[0].upstream == found[0].broadcasts == ("3",)


def test_a_fan_out_that_leads_nowhere_is_named() -> None:
    text = refused("1 LoadImage a=b\n 2 ClusterFanOutImage images=1.0\n 3 SaveImage images=2.0")
    assert text.startswith("node 2 (ClusterFanOutImage) leads to no ClusterFanIn or ClusterGather")


def test_an_end_without_a_fan_out_is_named() -> None:
    text = refused("1 LoadImage a=b\n 2 ClusterFanInImages images=1.0")
    assert text.startswith("node 2 (ClusterFanInImages) comes after no ClusterFanOut node")


def test_a_reader_of_a_slice_outside_of_the_region_is_named() -> None:
    text = refused(TEXT_TO_IMAGE + "9 PreviewImage images=6.0")
    assert text.startswith("node 9 (PreviewImage) reads node 6 (VAEDecode), which works on a slice")


def test_a_reader_of_the_fan_out_itself_is_named() -> None:
    text = refused(TEXT_TO_IMAGE + "9 LatentUpscale samples=4.0")
    assert text.startswith("node 9 (LatentUpscale) reads a slice of node 4 (ClusterFanOutLatent)")


def test_a_result_that_only_the_leader_has_is_named() -> None:
    text = refused("""
        1 LoadImage image=a
        2 ClusterFanOutImage images=1.0
        3 ImageBlur image=2.0
        4 ClusterFanInImages images=3.0
        5 ClusterFanOutImage images=1.0
        6 ImageBlend image1=5.0 image2=4.0
        7 ClusterFanInImages images=6.0
    """)
    assert text.startswith("node 6 (ImageBlend) reads node 4 (ClusterFanInImages), whose result")


def test_titles_are_told() -> None:
    prompt = prompt_of("1 LoadImage a=b\n 2 ClusterFanOutImage images=1.0")
    prompt["2"]["_meta"] = {"title": "Cut"}
    with pytest.raises(WorkflowError, match=r'node 2 \(ClusterFanOutImage, "Cut"\) leads to no'):
        find_regions(prompt)


def test_links_to_nothing_are_left_to_comfyui() -> None:
    assert len(regions(TEXT_TO_IMAGE.replace("positive=2.0", "positive=99.0"))) == 1
