"""Interrupts, errors and what a workflow lacks: told at the leader, stopped at the followers."""

from __future__ import annotations

import pytest

from tests.comfyui.client import PromptFailed, PromptInterrupted, PromptRefused
from tests.comfyui.instances import ComfyCluster
from tests.comfyui.prompts import (
    Nodes,
    PromptBuilder,
    Ref,
    fan_out,
    over_images,
    photographs,
    save,
)


def gated(gate: str, *, instances: str = "", count: int = 4) -> Nodes:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        return builder.add("TestGate", value=images, gate=gate, instances=instances)

    return over_images(through, count=count, name=gate)


def own_prompt(gate: str, name: str) -> Nodes:
    """Something that a follower does for its own user."""
    builder = PromptBuilder()
    image = builder.add("TestSignedImage", height=8, width=8)
    held = builder.add("TestGate", value=image, gate=gate, instances="")
    save(builder, held, name)
    return builder.prompt


def test_an_interrupt_stops_the_job_and_nothing_else(cluster: ComfyCluster, unique: str) -> None:
    busy, free = cluster.instances[1], cluster.instances[2]
    running = busy.client.queue(own_prompt(f"{unique}-own", unique))
    cluster.signals.wait_until_reached(f"{unique}-own", [1])
    prompt_id = cluster.leader.client.queue(gated(unique))
    cluster.signals.wait_until_reached(unique, [0, 2, 3])
    waiting = free.client.queue(own_prompt(f"{unique}-open", unique))
    cluster.leader.client.interrupt()
    with pytest.raises(PromptInterrupted):
        cluster.leader.client.wait(prompt_id)
    cluster.signals.wait_until_interrupted(unique, [0, 2, 3])
    cluster.signals.wait_until_reached(f"{unique}-open", [2])
    assert running in busy.client.pending_ids()
    cluster.signals.open(f"{unique}-own")
    cluster.signals.open(f"{unique}-open")
    for instance, own in ((busy, running), (free, waiting)):
        instance.client.wait(own)
    cluster.wait_until_idle()
    assert cluster.signals.counts(unique) == {}


def test_an_error_on_a_follower_names_instance_node_and_message(
    cluster: ComfyCluster, unique: str
) -> None:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        held = builder.add("TestGate", value=images, gate=unique, instances="1")
        settings = {"name": unique, "instances": "3", "only_marked": False}
        return builder.add("TestFail", images=held, **settings)

    cluster.signals.break_node(unique)
    with pytest.raises(PromptFailed) as failure:
        cluster.leader.client.run(over_images(through, count=4, name=unique))
    message = failure.value.message
    assert "instance 3" in message
    assert "TestFail" in message
    assert "was told to fail on instance 3" in message
    # The others are not left waiting.
    cluster.signals.wait_until_interrupted(unique, [1])
    cluster.wait_until_idle()


def test_a_failing_item_is_told_with_the_instance_that_had_it(
    cluster: ComfyCluster, unique: str
) -> None:
    builder = PromptBuilder()
    marked = builder.add("TestMark", images=photographs(builder, 8), position=5)
    part = fan_out(builder, marked)
    settings = {"name": unique, "instances": "", "only_marked": True}
    failing = builder.add("TestFail", images=part, **settings)
    save(builder, builder.add("ClusterFanInImages", images=failing), unique)
    with pytest.raises(PromptFailed, match="instance 2"):
        cluster.leader.client.run(builder.prompt)


def test_an_error_on_the_leader_stops_the_followers(cluster: ComfyCluster, unique: str) -> None:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        held = builder.add("TestGate", value=images, gate=unique, instances="1,2,3")
        settings = {"name": unique, "instances": "0", "only_marked": False}
        return builder.add("TestFail", images=held, **settings)

    cluster.signals.break_node(unique)
    with pytest.raises(PromptFailed) as failure:
        cluster.leader.client.run(over_images(through, count=4, name=unique))
    assert failure.value.node_type == "TestFail"
    cluster.wait_until_idle()


def test_a_node_class_that_a_follower_lacks_is_told_before_anything_is_computed(
    cluster: ComfyCluster, unique: str
) -> None:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        counted = builder.add("TestCount", value=images, name=unique)
        return builder.add("TestLeaderOnly", images=counted)

    with pytest.raises(PromptFailed, match=r"instance [123] lacks .*TestLeaderOnly"):
        cluster.leader.client.run(over_images(through, count=8, name=unique))
    assert cluster.signals.counts(unique) == {}


def test_a_file_that_a_follower_lacks_is_told_before_anything_is_computed(
    cluster: ComfyCluster, unique: str
) -> None:
    choices = cluster.leader.folder / "input" / "choices"
    choices.mkdir(exist_ok=True)
    (choices / "model.safetensors").touch()

    def through(builder: PromptBuilder, images: Ref) -> Ref:
        counted = builder.add("TestCount", value=images, name=unique)
        return builder.add("TestChoice", images=counted, file="model.safetensors")

    with pytest.raises(PromptFailed, match=r"instance [123] lacks .*model\.safetensors"):
        cluster.leader.client.run(over_images(through, count=8, name=unique))
    assert cluster.signals.counts(unique) == {}


def test_images_of_differing_size_are_told_with_their_instances(
    cluster: ComfyCluster, unique: str
) -> None:
    def through(builder: PromptBuilder, images: Ref) -> Ref:
        return builder.add("TestSizedByInstance", images=images)

    with pytest.raises(PromptFailed) as failure:
        cluster.leader.client.run(over_images(through, count=4, name=unique))
    for index in range(4):
        assert f"instance {index}" in failure.value.message
        assert f"{8 + index}, 96" in failure.value.message


def test_a_fan_out_without_a_fan_in_is_told(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    save(builder, fan_out(builder, photographs(builder, 4)), unique)
    with pytest.raises((PromptFailed, PromptRefused), match="ClusterFanIn"):
        cluster.leader.client.run(builder.prompt)
    cluster.wait_until_idle()


def test_prompts_without_cluster_nodes_stay_at_home(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    counted = builder.add("TestCount", value=photographs(builder, 2), name=unique)
    save(builder, counted, unique)
    cluster.leader.client.run(builder.prompt)
    assert dict(cluster.signals.counts(unique)) == {0: 1}
