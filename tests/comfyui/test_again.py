"""Each next run works, whatever became of the last one."""

from __future__ import annotations

import pytest

from tests.comfyui.client import PromptFailed, PromptInterrupted
from tests.comfyui.comparing import assert_same
from tests.comfyui.instances import ComfyCluster
from tests.comfyui.prompts import (
    Nodes,
    PromptBuilder,
    Ref,
    over_images,
    scale_and_blur,
    without_regions,
)


def node_of(prompt: Nodes, class_type: str) -> dict[str, object]:
    """The inputs of the one node of a class."""
    (inputs,) = (each["inputs"] for each in prompt.values() if each["class_type"] == class_type)
    found: dict[str, object] = inputs
    return found


def assert_right(cluster: ComfyCluster, prompt: Nodes, *, name: str) -> None:
    """Runs a prompt, and what it makes is what the same nodes make without a cluster."""
    cluster.leader.client.run(without_regions(prompt))
    expected = cluster.leader.saved(name)
    (cluster.leader.folder / "output" / f"{name}.pt").unlink()
    cluster.leader.client.run(prompt)
    assert_same(cluster.leader.saved(name), expected)


def test_the_same_prompt_runs_again_and_again(cluster: ComfyCluster, unique: str) -> None:
    prompt = over_images(scale_and_blur, count=6, name=unique)
    for _ in range(4):
        assert_right(cluster, prompt, name=unique)


def test_what_is_loaded_stays_cached(cluster: ComfyCluster, unique: str) -> None:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        counted = builder.add("TestTinyModel", seed=3)
        kept = builder.add("TestCount", value=counted, name=unique)
        tiny = builder.add("TestTinyVAE", seed=0)
        latent = builder.add("VAEEncode", pixels=images, vae=tiny)
        text = builder.add("TestTinyConditioning", text="")
        sampled = builder.add(
            "KSampler",
            **{"model": kept, "positive": text, "negative": text, "latent_image": latent},
            **{"seed": 1, "steps": 1, "cfg": 1.0, "denoise": 0.1},
            **{"sampler_name": "euler", "scheduler": "normal"},
        )
        return builder.add("VAEDecode", samples=sampled, vae=tiny)

    for _ in range(2):
        cluster.leader.client.run(over_images(through, count=4, name=unique))
    assert dict(cluster.signals.counts(unique)) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_changed_inside_upstream_and_downstream(cluster: ComfyCluster, unique: str) -> None:
    prompt = over_images(scale_and_blur, count=6, name=unique)
    assert_right(cluster, prompt, name=unique)
    node_of(prompt, "ImageBlur")["sigma"] = 2.5
    assert_right(cluster, prompt, name=unique)
    node_of(prompt, "TestPhotographs")["first"] = 4
    assert_right(cluster, prompt, name=unique)
    node_of(prompt, "TestSaveTensor")["name"] = f"{unique}-other"
    assert_right(cluster, prompt, name=f"{unique}-other")
    node_of(prompt, "TestPhotographs")["count"] = 2
    assert_right(cluster, prompt, name=f"{unique}-other")


def test_interrupted_in_the_middle(cluster: ComfyCluster, unique: str) -> None:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        return builder.add("TestGate", value=images, gate=unique, instances="")

    prompt = over_images(through, count=6, name=unique)
    for _ in range(2):
        prompt_id = cluster.leader.client.queue(prompt)
        cluster.signals.wait_until_reached(unique, range(4))
        cluster.leader.client.interrupt()
        with pytest.raises(PromptInterrupted):
            cluster.leader.client.wait(prompt_id)
        cluster.signals.wait_until_interrupted(unique, range(4))
        cluster.wait_until_idle()
        cluster.signals.close(unique)
    cluster.signals.open(unique)
    assert_right(cluster, prompt, name=unique)


def test_failed_in_the_middle(cluster: ComfyCluster, unique: str) -> None:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        return builder.add("TestFail", images=images, name=unique, instances="2", only_marked=False)

    prompt = over_images(through, count=6, name=unique)
    for _ in range(2):
        cluster.signals.break_node(unique)
        with pytest.raises(PromptFailed, match="instance 2"):
            cluster.leader.client.run(prompt)
        cluster.signals.mend_node(unique)
        assert_right(cluster, prompt, name=unique)


def test_a_follower_was_restarted_in_between(cluster: ComfyCluster, unique: str) -> None:
    prompt = over_images(scale_and_blur, count=6, name=unique)
    assert_right(cluster, prompt, name=unique)
    cluster.instances[2].restart()
    cluster.wait_until_connected()
    assert_right(cluster, prompt, name=unique)
