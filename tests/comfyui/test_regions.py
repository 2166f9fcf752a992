"""Regions over four real ComfyUI processes give the bits of one machine."""

from __future__ import annotations

import pytest
import torch

from tests.comfyui.comparing import assert_same
from tests.comfyui.instances import ComfyCluster
from tests.comfyui.prompts import (
    FAN_INS,
    PromptBuilder,
    Ref,
    fan_in,
    fan_out,
    over_images,
    photographs,
    save,
    scale_and_blur,
)


@pytest.mark.parametrize("count", [8, 10, 3, 1])
def test_images_equal_those_of_one_machine(cluster: ComfyCluster, count: int, unique: str) -> None:
    plain, divided = (
        over_images(scale_and_blur, count=count, cluster=is_divided, name=f"{unique}-{is_divided}")
        for is_divided in (False, True)
    )
    cluster.leader.client.run(plain)
    cluster.leader.client.run(divided)
    result = cluster.leader.saved(f"{unique}-True")
    assert_same(result, cluster.leader.saved(f"{unique}-False"))
    assert result[0].shape == (count, 60, 80, 3)


@pytest.mark.parametrize(("count", "expected"), [(10, [3, 3, 2, 2]), (3, [1, 1, 1, 0])])
def test_every_instance_works_on_its_share_only(
    cluster: ComfyCluster, count: int, expected: list[int], unique: str
) -> None:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        each = builder.add("TestImageList", images=images)
        return builder.add("TestCount", value=each, name=unique)

    cluster.leader.client.run(over_images(through, count=count, name=unique))
    counts = cluster.signals.counts(unique)
    assert [counts[index] for index in range(4)] == expected


def test_masks_equal_those_of_one_machine(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    masks = builder.add("TestMasks", images=photographs(builder, 6))
    for name, is_divided in (("plain", False), ("divided", True)):
        part = fan_out(builder, masks, "masks") if is_divided else masks
        made = builder.add("InvertMask", mask=part)
        save(builder, fan_in(builder, made, "masks") if is_divided else made, f"{unique}-{name}")
    cluster.leader.client.run(builder.prompt)
    assert_same(cluster.leader.saved(f"{unique}-divided"), cluster.leader.saved(f"{unique}-plain"))


@pytest.mark.parametrize(
    "latent",
    [
        {},
        {"with_batch_index": True},
        {"noise_masks": 1},
        {"noise_masks": 7},
        {"frames": 3},
        {"with_batch_index": True, "noise_masks": 7, "with_extras": True},
    ],
    ids=str,
)
def test_latents_come_back_as_they_were(
    cluster: ComfyCluster, latent: dict[str, object], unique: str
) -> None:
    values = {"with_batch_index": False, "noise_masks": 0, "frames": 0, "with_extras": False}
    builder = PromptBuilder()
    made = builder.add("TestLatent", count=7, **(values | latent))
    save(builder, made, f"{unique}-plain")
    counted = builder.add("TestCount", value=fan_out(builder, made, "latent"), name=unique)
    save(builder, fan_in(builder, counted, "latent"), f"{unique}-divided")
    cluster.leader.client.run(builder.prompt)
    assert_same(cluster.leader.saved(f"{unique}-divided"), cluster.leader.saved(f"{unique}-plain"))
    assert sorted(cluster.signals.counts(unique)) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["images", "masks", "latent"])
def test_gather_makes_a_list_with_an_element_for_each_instance(
    cluster: ComfyCluster, kind: str, unique: str
) -> None:
    builder = PromptBuilder()
    images = photographs(builder, 10)
    if kind == "images":
        value = images
    elif kind == "masks":
        value = builder.add("TestMasks", images=images)
    else:
        value = builder.add(
            "TestLatent",
            **{"count": 10, "with_batch_index": False, "noise_masks": 0, "frames": 0},
            with_extras=False,
        )
    save(builder, value, f"{unique}-plain")
    gather = FAN_INS[kind].replace("FanIn", "Gather")
    gathered = builder.add(gather, **{kind: fan_out(builder, value, kind)})
    save(builder, gathered, unique)
    cluster.leader.client.run(builder.prompt)
    (whole,), parts = cluster.leader.saved(f"{unique}-plain"), cluster.leader.saved(unique)
    if kind == "latent":
        # Without one it says 0, 1, 2, ...
        positions = [part.get("batch_index", [0, 1, 2]) for part in parts]
        assert positions == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
        whole, parts = whole["samples"], [part["samples"] for part in parts]
    assert [len(part) for part in parts] == [3, 3, 2, 2]
    assert_same(torch.cat(parts), whole)


def test_several_fan_outs_feed_one_region(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    images = photographs(builder, 6)
    other = photographs(builder, 6, first=6)
    one = photographs(builder, 1, first=12)
    mask = builder.add("TestMasks", images=images)
    for name, is_divided in (("plain", False), ("divided", True)):
        parts = [fan_out(builder, each) if is_divided else each for each in (images, other, one)]
        mask_part = fan_out(builder, mask, "masks") if is_divided else mask
        blend = {"blend_factor": 0.3, "blend_mode": "screen"}
        mixed = builder.add("ImageBlend", image1=parts[0], image2=parts[1], **blend)
        composed = builder.add(
            "ImageCompositeMasked",
            **{"destination": mixed, "source": parts[2], "mask": mask_part},
            **{"x": 0, "y": 0, "resize_source": False},
        )
        save(builder, fan_in(builder, composed) if is_divided else composed, f"{unique}-{name}")
    cluster.leader.client.run(builder.prompt)
    assert_same(cluster.leader.saved(f"{unique}-divided"), cluster.leader.saved(f"{unique}-plain"))


def test_two_regions_one_after_the_other(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    images = photographs(builder, 7)
    for name, is_divided in (("plain", False), ("divided", True)):
        made = images
        for _ in range(2):
            part = fan_out(builder, made) if is_divided else made
            blurred = scale_and_blur(builder, part)
            made = fan_in(builder, blurred) if is_divided else blurred
        save(builder, made, f"{unique}-{name}")
    cluster.leader.client.run(builder.prompt)
    assert_same(cluster.leader.saved(f"{unique}-divided"), cluster.leader.saved(f"{unique}-plain"))


def test_two_regions_side_by_side(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    images = photographs(builder, 5)
    for name, is_divided in (("plain", False), ("divided", True)):
        part = fan_out(builder, images) if is_divided else images
        other_part = fan_out(builder, images) if is_divided else images
        blurred = scale_and_blur(builder, part)
        inverted = builder.add("ImageInvert", image=other_part)
        for index, made in enumerate((blurred, inverted)):
            joined = fan_in(builder, made) if is_divided else made
            save(builder, joined, f"{unique}-{name}-{index}")
    cluster.leader.client.run(builder.prompt)
    for index in range(2):
        plain = cluster.leader.saved(f"{unique}-plain-{index}")
        assert_same(cluster.leader.saved(f"{unique}-divided-{index}"), plain)


def test_one_region_with_two_ends(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    images = photographs(builder, 5)
    part = fan_out(builder, images)
    save(builder, fan_in(builder, builder.add("ImageInvert", image=part)), f"{unique}-inverted")
    masks = fan_in(builder, builder.add("TestMasks", images=part), "masks")
    save(builder, masks, f"{unique}-masks")
    save(builder, builder.add("ImageInvert", image=images), f"{unique}-plain-inverted")
    save(builder, builder.add("TestMasks", images=images), f"{unique}-plain-masks")
    cluster.leader.client.run(builder.prompt)
    for name in ("inverted", "masks"):
        plain = cluster.leader.saved(f"{unique}-plain-{name}")
        assert_same(cluster.leader.saved(f"{unique}-{name}"), plain)


def test_a_list_is_fanned_out_element_by_element(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    batches = builder.add(
        "ClusterSplitBatchToList", batch=photographs(builder, 10), items_per_element=5
    )
    save(builder, builder.add("ImageInvert", image=batches), f"{unique}-plain")
    inverted = builder.add("ImageInvert", image=fan_out(builder, batches))
    save(builder, fan_in(builder, inverted), f"{unique}-divided")
    cluster.leader.client.run(builder.prompt)
    plain = cluster.leader.saved(f"{unique}-plain")
    assert len(plain) == 2
    assert_same(cluster.leader.saved(f"{unique}-divided"), plain)


def test_a_list_made_inside_of_a_region_is_joined(cluster: ComfyCluster, unique: str) -> None:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        return builder.add("ImageInvert", image=builder.add("TestImageList", images=images))

    plain = over_images(through, count=6, cluster=False, name=f"{unique}-plain")
    cluster.leader.client.run(plain)
    cluster.leader.client.run(over_images(through, count=6, name=f"{unique}-divided"))
    expected = torch.cat(cluster.leader.saved(f"{unique}-plain"))
    result = cluster.leader.saved(f"{unique}-divided")
    assert_same(torch.cat(result), expected)


def test_nested_subgraphs_run_inside_of_a_region(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    images = photographs(builder, 6)
    part = fan_out(builder, images)
    soft = builder.add("ClusterStartSubgraph", input=part, subgraph_id="soft")
    blurred = builder.add("ImageBlur", image=soft, blur_radius=2, sigma=1.0)
    soft_end = builder.add("ClusterEndSubgraph", input=blurred)
    twice = builder.add("ClusterStartSubgraph", input=soft_end, subgraph_id="twice")
    inverted = builder.add("ImageInvert", image=twice)
    used = builder.add("ClusterUseSubgraph", input=inverted, subgraph_id="soft")
    twice_end = builder.add("ClusterEndSubgraph", input=used)
    again = builder.add("ClusterUseSubgraph", input=twice_end, subgraph_id="twice")
    save(builder, fan_in(builder, again), f"{unique}-divided")
    plain = images
    for class_type in ("ImageBlur", "ImageInvert", "ImageBlur", "ImageInvert", "ImageBlur"):
        settings = {"blur_radius": 2, "sigma": 1.0} if class_type == "ImageBlur" else {}
        plain = builder.add(class_type, image=plain, **settings)
    save(builder, plain, f"{unique}-plain")
    cluster.leader.client.run(builder.prompt)
    assert_same(cluster.leader.saved(f"{unique}-divided"), cluster.leader.saved(f"{unique}-plain"))


def test_native_subgraph_ids_work(cluster: ComfyCluster, unique: str) -> None:
    prompt = over_images(scale_and_blur, count=5, name=unique)
    renamed = {
        f"{7 + int(node_id) % 2}:{node_id}": {
            **node,
            "inputs": {
                name: [f"{7 + int(value[0]) % 2}:{value[0]}", value[1]]
                if isinstance(value, list)
                else value
                for name, value in node["inputs"].items()
            },
        }
        for node_id, node in prompt.items()
    }
    cluster.leader.client.run(renamed)
    cluster.leader.client.run(over_images(scale_and_blur, count=5, cluster=False, name="plain"))
    assert_same(cluster.leader.saved(unique), cluster.leader.saved("plain"))
