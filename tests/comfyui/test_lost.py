"""A follower dies in the middle: what the leader makes of it, by `ON_LOST`.

Clusters of two and three, which also show that those give the bits of one machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.comfyui.client import PromptFailed
from tests.comfyui.comparing import assert_same
from tests.comfyui.conftest import add_photographs
from tests.comfyui.instances import ComfyCluster
from tests.comfyui.place import ComfyPlace
from tests.comfyui.prompts import (
    Nodes,
    PromptBuilder,
    Ref,
    fan_in,
    fan_out,
    over_images,
    photographs,
    save,
    scale_and_blur,
)


@pytest.fixture(scope="module")
def two(comfyui: ComfyPlace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyCluster]:
    """`redo`, as it is where nothing is set: with one follower nobody is left but the leader."""
    with ComfyCluster(2, folder=tmp_path_factory.mktemp("two")) as cluster:
        add_photographs(cluster.leader)
        yield cluster


@pytest.fixture(scope="module")
def three(comfyui: ComfyPlace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyCluster]:
    settings = {"ON_LOST": "partial"}
    with ComfyCluster(3, folder=tmp_path_factory.mktemp("three"), settings=settings) as cluster:
        add_photographs(cluster.leader)
        yield cluster


def held_and_blurred(gate: str, *, instances: str, count: int) -> Nodes:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        blurred = scale_and_blur(builder, images)
        return builder.add("TestGate", value=blurred, gate=gate, instances=instances)

    return over_images(through, count=count, name=gate)


def plain_result(cluster: ComfyCluster, count: int) -> torch.Tensor:
    """What one machine makes of so many photographs."""
    prompt = over_images(scale_and_blur, count=count, cluster=False, name="plain")
    cluster.leader.client.run(prompt)
    (result,) = cluster.leader.saved("plain")
    assert isinstance(result, torch.Tensor)
    return result


def test_two_processes_make_what_one_makes(two: ComfyCluster, unique: str) -> None:
    two.leader.client.run(over_images(scale_and_blur, count=7, name=unique))
    assert_same(two.leader.saved(unique), [plain_result(two, 7)])


def test_three_processes_make_what_one_makes(three: ComfyCluster, unique: str) -> None:
    three.leader.client.run(over_images(scale_and_blur, count=7, name=unique))
    assert_same(three.leader.saved(unique), [plain_result(three, 7)])


def test_other_followers_redo_what_was_lost(cluster: ComfyCluster, unique: str) -> None:
    expected = plain_result(cluster, 10)
    prompt_id = cluster.leader.client.queue(held_and_blurred(unique, instances="2", count=10))
    cluster.signals.wait_until_reached(unique, [2])
    cluster.instances[2].kill()
    cluster.leader.client.wait(prompt_id)
    assert_same(cluster.leader.saved(unique), [expected])


def test_a_lost_whole_workflow_is_redone_too(cluster: ComfyCluster, unique: str) -> None:
    expected = plain_result(cluster, 10)
    prompt = held_and_blurred(unique, instances="1", count=10)
    answer = cluster.leader.client.cluster_queue(prompt)
    cluster.signals.wait_until_reached(unique, [1])
    cluster.instances[1].kill()
    cluster.leader.client.wait(answer["prompt_id"])
    assert_same(cluster.leader.saved(unique), [expected])


def test_the_leader_redoes_what_nobody_else_can(two: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    images = photographs(builder, 6)
    for name, is_divided in (("plain", False), ("divided", True)):
        masks = builder.add("TestMasks", images=images)
        part = fan_out(builder, images) if is_divided else images
        mask_part = fan_out(builder, masks, "masks") if is_divided else masks
        if is_divided:
            part = builder.add("TestGate", value=part, gate=unique, instances="1")
        blurred = scale_and_blur(builder, part)
        inverted = builder.add("InvertMask", mask=mask_part)
        composed = builder.add(
            "ImageCompositeMasked",
            **{"destination": blurred, "source": part, "mask": inverted},
            **{"x": 3, "y": 5, "resize_source": True},
        )
        save(builder, fan_in(builder, composed) if is_divided else composed, f"{unique}-{name}")
        joined = fan_in(builder, inverted, "masks") if is_divided else inverted
        save(builder, joined, f"{unique}-{name}-masks")
    prompt_id = two.leader.client.queue(builder.prompt)
    two.signals.wait_until_reached(unique, [1])
    two.instances[1].kill()
    two.leader.client.wait(prompt_id)
    for suffix in ("", "-masks"):
        plain = two.leader.saved(f"{unique}-plain{suffix}")
        assert_same(two.leader.saved(f"{unique}-divided{suffix}"), plain)
    two.recover()
    two.leader.client.run(over_images(scale_and_blur, count=7, name=unique))
    assert_same(two.leader.saved(unique), [plain_result(two, 7)])


def test_partial_leaves_out_what_was_lost(three: ComfyCluster, unique: str) -> None:
    expected = plain_result(three, 7)
    prompt_id = three.leader.client.queue(held_and_blurred(unique, instances="1", count=7))
    three.signals.wait_until_reached(unique, [1])
    three.instances[1].kill()
    three.leader.client.wait(prompt_id)
    # Items 3 and 4 were instance 1's.
    assert_same(three.leader.saved(unique), [torch.cat([expected[:3], expected[5:]])])
    assert "instance 1" in three.leader.log_text().lower()


def test_fail_names_the_instance_that_was_lost(two: ComfyCluster, unique: str) -> None:
    two.leader.restart({**two.leader.settings, "ON_LOST": "fail"})
    two.recover()
    two.leader.client.run(over_images(scale_and_blur, count=7, name=unique))
    assert_same(two.leader.saved(unique), [plain_result(two, 7)])
    prompt_id = two.leader.client.queue(held_and_blurred(unique, instances="1", count=4))
    two.signals.wait_until_reached(unique, [1])
    two.instances[1].kill()
    with pytest.raises(PromptFailed, match="instance 1"):
        two.leader.client.wait(prompt_id)


def test_an_instance_that_is_asked_to_end_ends_cleanly(three: ComfyCluster, unique: str) -> None:
    three.leader.client.run(over_images(scale_and_blur, count=4, name=unique))
    assert three.leader.stop() == 0
    assert three.instances[2].stop() == 0
