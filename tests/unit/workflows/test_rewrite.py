"""Regions and files as prompts of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from comfy_cluster.workflows.regions import find_regions
from comfy_cluster.workflows.rewrite import (
    POSITIONS_CLASS,
    RECEIVED,
    Birth,
    find_births,
    makes_list,
    nodes_for_leader,
    prompt_for_follower,
    with_outputs_only,
    with_positions,
    with_prefix,
)
from tests.unit.workflows.prompts import TEXT_TO_IMAGE, prompt_of


@dataclass(frozen=True)
class Type:
    """What is asked of a node class."""

    output_types: Sequence[str] = ("IMAGE",)
    takes_lists: bool = False
    lists: tuple[bool, ...] = ()

    def makes_list(self, output: int) -> bool:
        return output < len(self.lists) and self.lists[output]


TYPES: Mapping[str, Type] = {
    "ClusterFanOutLatent": Type(("LATENT",), takes_lists=True, lists=(True,)),
    "ClusterFanOutImage": Type(("IMAGE",), takes_lists=True, lists=(True,)),
    "VAEEncode": Type(("LATENT",)),
    "EncodeTwo": Type(("LATENT", "MASK", "LATENT")),
    "KSampler": Type(("LATENT",)),
    "LatentUpscale": Type(("LATENT",)),
    "VAEDecode": Type(("IMAGE",)),
    "Split": Type(("IMAGE",), lists=(True,)),
    "Join": Type(("IMAGE",), takes_lists=True),
    "Many": Type(("IMAGE", "IMAGE"), lists=(False, True)),
}

IMAGE_TO_IMAGE = """
    1 LoadImage image=a
    2 CheckpointLoaderSimple ckpt_name=a
    3 ClusterFanOutImage images=1.0
    4 VAEEncode pixels=3.0 vae=2.2
    5 KSampler model=2.0 latent_image=4.0
    6 LatentUpscale samples=4.0
    7 VAEDecode samples=5.0 vae=2.2
    8 ClusterFanInImages images=7.0
    9 ClusterFanInLatents latent=6.0
    10 SaveImage images=8.0
"""


def type_of(class_type: str) -> Type:
    return TYPES.get(class_type, Type())


def births_of(text: str) -> list[Birth]:
    prompt = prompt_of(text)
    (region,) = find_regions(prompt)
    return find_births(prompt, region, type_of)


def for_follower(text: str) -> dict[str, dict[str, Any]]:
    prompt = prompt_of(text)
    (region,) = find_regions(prompt)
    before = copy.deepcopy(prompt)
    nodes = prompt_for_follower(prompt, region, find_births(prompt, region, type_of))
    assert prompt == before
    return nodes


# Births.


def test_each_latent_that_a_node_of_the_region_makes_is_born() -> None:
    # Also out of another latent: not every node hands its positions on.
    assert births_of(IMAGE_TO_IMAGE) == [Birth((node_id, 0), ("3",)) for node_id in ("4", "5", "6")]


def test_a_latent_that_is_fanned_out_is_not() -> None:
    assert Birth(("4", 0)) not in births_of(TEXT_TO_IMAGE)


def test_each_latent_output_is_born_by_itself() -> None:
    text = """
        1 LoadImage image=a
        2 ClusterFanOutImage images=1.0
        3 EncodeTwo pixels=2.0
        4 KSampler latent_image=3.2 other=3.0
        5 ClusterFanInLatents latent=4.0
    """
    assert [birth.link for birth in births_of(text)] == [("3", 0), ("3", 2), ("4", 0)]


def test_a_latent_from_upstream_makes_no_birth_less() -> None:
    text = """
        1 LoadImage image=a
        2 EmptyLatentImage batch_size=1
        3 ClusterFanOutImage images=1.0
        4 VAEEncode pixels=3.0 other=2.0
        5 ClusterFanInLatents latent=4.0
    """
    assert [birth.link for birth in births_of(text)] == [("4", 0)]


# A follower's prompt.


def test_a_follower_gets_what_it_needs_and_no_more() -> None:
    nodes = for_follower(TEXT_TO_IMAGE)
    assert nodes.keys() == {"1", "2", "4", "5", "6", "7", Birth(("5", 0)).node_id}
    assert nodes["4"]["inputs"] == {"latent": RECEIVED}
    assert nodes["5"] == prompt_of(TEXT_TO_IMAGE)["5"]


def test_positions_are_told_between_a_birth_and_its_readers() -> None:
    nodes = for_follower(IMAGE_TO_IMAGE)
    told = Birth(("4", 0)).node_id
    assert nodes[told]["class_type"] == POSITIONS_CLASS
    assert nodes[told]["inputs"] == {"latent": ["4", 0]}
    assert nodes["5"]["inputs"]["latent_image"] == [told, 0]
    assert nodes["6"]["inputs"]["samples"] == [told, 0]
    assert nodes["4"]["inputs"]["pixels"] == ["3", 0]


def test_broadcasts_are_received_and_what_is_behind_them_is_not_made() -> None:
    nodes = for_follower(
        """
        1 LoadImage image=a
        2 LoadImage image=b
        3 ClusterBroadcastTensor tensor=2.0
        4 ClusterBroadcastLoadedImage image=c
        5 ClusterListenTensorBroadcast
        6 ClusterFanOutImage images=1.0
        7 Blend one=6.0 two=3.0 three=4.0 four=5.0
        8 ClusterFanInImages images=7.0
        """
    )
    assert nodes.keys() == {"3", "4", "5", "6", "7", "8"}
    assert nodes["3"]["inputs"] == {"tensor": RECEIVED}
    assert nodes["4"]["inputs"] == {"image": RECEIVED}
    assert nodes["5"]["inputs"] == {}


# Once more on the leader.


def for_leader(text: str, end: str, base: str = "") -> dict[str, dict[str, Any]]:
    prompt = prompt_of(text)
    (region,) = find_regions(prompt)
    births = find_births(prompt, region, type_of)
    return nodes_for_leader(prompt, region, births, end=end, prefix="x.", base=base)


def test_the_leader_does_what_leads_to_one_end() -> None:
    nodes = for_leader(IMAGE_TO_IMAGE, "9")
    told = "x." + Birth(("4", 0)).node_id
    told_again = "x." + Birth(("6", 0)).node_id
    assert nodes.keys() == {"x.3", "x.4", "x.6", "x.9", told, told_again}
    assert nodes["x.3"]["inputs"] == {"images": RECEIVED}
    assert nodes["x.4"]["inputs"] == {"pixels": ["x.3", 0], "vae": ["2", 2]}
    assert nodes["x.6"]["inputs"] == {"samples": [told, 0]}
    assert nodes["x.9"]["inputs"] == {"latent": [told_again, 0]}


def test_what_is_upstream_has_the_ids_of_the_file_that_it_is_in() -> None:
    nodes = for_leader(IMAGE_TO_IMAGE, "8", base="file.")
    assert nodes["x.4"]["inputs"]["vae"] == ["file.2", 2]
    assert nodes["x.5"]["inputs"]["model"] == ["file.2", 0]


def test_a_birth_that_another_end_needs_is_left_out() -> None:
    text = """
        1 LoadImage image=a
        2 ClusterFanOutImage images=1.0
        3 VAEEncode pixels=2.0
        4 ClusterFanInLatents latent=3.0
        5 ClusterFanInImages images=2.0
    """
    assert for_leader(text, "5").keys() == {"x.2", "x.5"}


# Lists.


@pytest.mark.parametrize(
    ("middle", "is_list"),
    [
        ("3 Blur images=2.0", False),
        ("3 Split images=2.0", True),
        ("3a Split images=2.0\n3 Blur images=3a.0", True),
        ("3a Split images=2.0\n3 Join images=3a.0", False),
        ("3a Join images=2.0\n3 Split images=3a.0", True),
        ("3a Many images=2.0\n3 Blur images=3a.0", False),
        ("3a Many images=2.0\n3 Blur images=3a.1", True),
        ("3a Split images=2.0\n3b Blur images=2.0\n3 Blend one=3b.0 two=3a.0", True),
    ],
)
def test_lists_that_are_born_in_a_region(middle: str, is_list: bool) -> None:
    text = "1 LoadImage image=a\n2 ClusterFanOutImage images=1.0\n4 ClusterFanInImages images=3.0\n"
    prompt = prompt_of(text + middle)
    (region,) = find_regions(prompt)
    assert makes_list(prompt, region, "4", type_of) is is_list


def test_a_list_from_upstream_is_not_born_in_the_region() -> None:
    text = """
        1 Split images=0
        2 ClusterFanOutImage images=1.0
        3 Blend one=2.0 two=1.0
        4 ClusterFanInImages images=3.0
    """
    prompt = prompt_of(text)
    (region,) = find_regions(prompt)
    assert not makes_list(prompt, region, "4", type_of)


# Whole prompts.


def test_whole_prompts_tell_positions_too() -> None:
    prompt = prompt_of(IMAGE_TO_IMAGE)
    before = copy.deepcopy(prompt)
    nodes = with_positions(prompt, [Birth(("4", 0))])
    assert prompt == before
    assert nodes.keys() - prompt.keys() == {Birth(("4", 0)).node_id}
    assert nodes["5"]["inputs"]["latent_image"] == [Birth(("4", 0)).node_id, 0]


def test_a_prefix_goes_before_all_ids() -> None:
    prompt = prompt_of("1 LoadImage image=a\n2 Blur images=1.0 radius=2\n3 SaveImage images=2.0")
    before = copy.deepcopy(prompt)
    nodes = with_prefix(prompt, "7.file1.")
    assert prompt == before
    assert nodes["7.file1.2"]["inputs"] == {"images": ["7.file1.1", 0], "radius": "2"}
    assert nodes.keys() == {"7.file1.1", "7.file1.2", "7.file1.3"}


def test_only_what_some_outputs_need() -> None:
    prompt = prompt_of(
        """
        1 LoadImage image=a
        2 Blur images=1.0
        3 SaveImage images=2.0
        4 PreviewImage images=1.0
        5 SaveImage images=9.0
        """
    )
    assert with_outputs_only(prompt, ["3"]).keys() == {"1", "2", "3"}
    assert with_outputs_only(prompt, ["4", "unknown"]).keys() == {"1", "4"}
    assert with_outputs_only(prompt, ["5"]).keys() == {"5"}
    assert with_outputs_only(prompt, []) == {}
