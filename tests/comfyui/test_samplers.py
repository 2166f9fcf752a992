"""KSampler over four processes draws for each image the noise that one machine would have drawn."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch

from tests.comfyui.instances import ComfyCluster
from tests.comfyui.prompts import (
    Nodes,
    PromptBuilder,
    checkpoint,
    fan_in,
    fan_out,
    image_to_image,
    sampled,
    save,
    text_to_image,
)

TOLERANCE = 1e-5  # rounding differs with the size of a batch; a level of 8 bits is 4e-3


@pytest.mark.parametrize("make", [text_to_image, image_to_image])
def test_images_equal_those_of_one_machine(
    cluster: ComfyCluster, make: Callable[..., Nodes], unique: str
) -> None:
    cluster.leader.client.run(make(8, cluster=False, name=f"{unique}-plain"))
    cluster.leader.client.run(make(8, name=f"{unique}-divided"))
    (plain,), (divided,) = (
        cluster.leader.saved(f"{unique}-{name}") for name in ("plain", "divided")
    )
    assert divided.shape == (8, 64, 64, 3)
    assert (divided - plain).abs().max() < TOLERANCE
    for one, other in combinations(divided, 2):
        assert (one - other).abs().max() > 1000 * TOLERANCE


def test_latents_go_on_to_a_second_sampler_on_one_machine(
    cluster: ComfyCluster, unique: str
) -> None:
    """What comes out of the fan-in must draw the noise of the whole batch again."""
    builder = PromptBuilder()
    tiny = checkpoint(builder)
    empty = builder.add("EmptyLatentImage", width=64, height=64, batch_size=5)
    for name, is_divided in (("plain", False), ("divided", True)):
        part = fan_out(builder, empty, "latent") if is_divided else empty
        latent = sampled(builder, tiny, part)
        joined = fan_in(builder, latent, "latent") if is_divided else latent
        again = sampled(builder, tiny, joined, denoise=0.5, seed=8)
        save(builder, again, f"{unique}-{name}")
    cluster.leader.client.run(builder.prompt)
    (plain,), (divided,) = (
        cluster.leader.saved(f"{unique}-{name}") for name in ("plain", "divided")
    )
    assert divided.keys() == plain.keys()
    scale = plain["samples"].abs().max()
    assert (divided["samples"] - plain["samples"]).abs().max() / scale < TOLERANCE
    assert not torch.equal(divided["samples"][0], divided["samples"][1])


def test_an_inpainting_mask_goes_with_its_latent(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    tiny = checkpoint(builder)
    whole = builder.add(
        "TestLatent",
        **{"count": 6, "with_batch_index": False, "noise_masks": 6, "frames": 0},
        with_extras=False,
    )
    for name, is_divided in (("plain", False), ("divided", True)):
        part = fan_out(builder, whole, "latent") if is_divided else whole
        latent = sampled(builder, tiny, part, denoise=0.7)
        save(
            builder, fan_in(builder, latent, "latent") if is_divided else latent, f"{unique}-{name}"
        )
    cluster.leader.client.run(builder.prompt)
    (plain,), (divided,) = (
        cluster.leader.saved(f"{unique}-{name}") for name in ("plain", "divided")
    )
    assert torch.equal(divided["noise_mask"], plain["noise_mask"])
    scale = plain["samples"].abs().max()
    assert (divided["samples"] - plain["samples"]).abs().max() / scale < TOLERANCE
