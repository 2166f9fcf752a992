"""Whole workflows on every instance: Queue Cluster, and the nodes that run workflows."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from tests.comfyui.client import PromptFailed, PromptInterrupted, PromptRefused
from tests.comfyui.comparing import assert_same
from tests.comfyui.instances import ComfyCluster
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


def run_everywhere(cluster: ComfyCluster, prompt: Nodes) -> None:
    """Queues a prompt on every instance, and waits until all have ended."""
    cluster.leader.client.run_on_cluster(prompt)
    cluster.wait_until_idle()


def test_a_region_in_a_whole_workflow(cluster: ComfyCluster, unique: str) -> None:
    cluster.leader.client.run(over_images(scale_and_blur, count=10, cluster=False, name="plain"))
    prompt = over_images(scale_and_blur, count=10, name=unique)
    for _ in range(2):
        answer = cluster.leader.client.cluster_queue(prompt)
        assert answer["job_id"]
        cluster.leader.client.wait(answer["prompt_id"])
        assert_same(cluster.leader.saved(unique), cluster.leader.saved("plain"))
        cluster.wait_until_idle()


def test_every_instance_gets_all_of_a_gather(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    image = builder.add("TestSignedImage", height=4, width=6)
    gathered = builder.add("ClusterGatherImages", images=image)
    save(builder, gathered, unique)
    run_everywhere(cluster, builder.prompt)
    expected = [torch.full((1, 4, 6, 3), index / 100) for index in range(4)]
    for instance in cluster.instances:
        assert_same(instance.saved(unique), expected)


@pytest.mark.parametrize("kind", ["masks", "latent"])
def test_masks_and_latents_are_gathered_too(cluster: ComfyCluster, kind: str, unique: str) -> None:
    builder = PromptBuilder()
    image = builder.add("TestSignedImage", height=64, width=64)
    if kind == "masks":
        gathered = builder.add("ClusterGatherMasks", masks=builder.add("TestMasks", images=image))
    else:
        vae = builder.add("TestTinyVAE", seed=0)
        latent = builder.add("VAEEncode", pixels=image, vae=vae)
        gathered = builder.add("ClusterGatherLatents", latent=latent)
    save(builder, gathered, unique)
    run_everywhere(cluster, builder.prompt)
    results = [instance.saved(unique) for instance in cluster.instances]
    assert len(results[0]) == 4
    for result in results[1:]:
        assert_same(result, results[0])


def test_a_tensor_of_the_leader_reaches_everybody(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    images = photographs(builder, 3)
    everywhere = builder.add("ClusterBroadcastTensor", tensor=images)
    save(builder, builder.add("ImageInvert", image=everywhere), unique)
    heard = builder.add("ClusterListenTensorBroadcast")
    save(builder, builder.add("ImageInvert", image=heard), f"{unique}-heard")
    run_everywhere(cluster, builder.prompt)
    expected = cluster.leader.saved(unique)
    assert expected[0].shape == (3, 72, 96, 3)
    for instance in cluster.instances:
        assert_same(instance.saved(unique), expected)
        assert_same(instance.saved(f"{unique}-heard"), expected)


def test_followers_need_no_file_for_an_image_that_the_leader_loads(
    cluster: ComfyCluster, unique: str
) -> None:
    picture = Image.radial_gradient("L").resize((40, 24)).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((40, 24)))
    picture.save(cluster.leader.folder / "input" / f"{unique}.png")
    builder = PromptBuilder()
    for class_type in ("LoadImage", "ClusterBroadcastLoadedImage"):
        loaded = builder.add(class_type, image=f"{unique}.png")
        for output, name in enumerate(("image", "mask")):
            save(builder, loaded[output], f"{unique}-{class_type}-{name}")
    cluster.leader.client.run(builder.prompt)
    del builder.prompt["1"], builder.prompt["2"], builder.prompt["3"]
    run_everywhere(cluster, builder.prompt)
    for name in ("image", "mask"):
        expected = cluster.leader.saved(f"{unique}-LoadImage-{name}")
        for instance in cluster.instances:
            saved = instance.saved(f"{unique}-ClusterBroadcastLoadedImage-{name}")
            assert_same(saved, expected)


def test_an_image_of_the_leader_is_used_inside_of_a_region(
    cluster: ComfyCluster, unique: str
) -> None:
    Image.radial_gradient("L").convert("RGB").save(cluster.leader.folder / f"input/{unique}.png")
    builder = PromptBuilder()
    images = photographs(builder, 6)
    for name, class_type in (("plain", "LoadImage"), ("divided", "ClusterBroadcastLoadedImage")):
        part = fan_out(builder, images) if name == "divided" else images
        frame = builder.add(class_type, image=f"{unique}.png")
        blend = {"blend_factor": 0.5, "blend_mode": "multiply"}
        made = builder.add("ImageBlend", image1=part, image2=frame, **blend)
        save(builder, fan_in(builder, made) if name == "divided" else made, f"{unique}-{name}")
    cluster.leader.client.run(builder.prompt)
    assert_same(cluster.leader.saved(f"{unique}-divided"), cluster.leader.saved(f"{unique}-plain"))


def test_each_instance_takes_its_item_of_a_batch(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    batch = builder.add("ClusterBroadcastTensor", tensor=photographs(builder, 4))
    save(builder, batch, f"{unique}-all")
    item = builder.add("ClusterGetInstanceWorkItemFromBatch", batch=batch, index_offset=0)
    save(builder, item, unique)
    save(builder, fan_in(builder, builder.add("ImageInvert", image=item)), f"{unique}-joined")
    run_everywhere(cluster, builder.prompt)
    (whole,) = cluster.leader.saved(f"{unique}-all")
    for index, instance in enumerate(cluster.instances):
        assert_same(instance.saved(unique), [whole[index : index + 1]])
    assert_same(cluster.leader.saved(f"{unique}-joined"), [1.0 - whole])


@pytest.mark.parametrize("class_type", ["ClusterBroadcastTensor", "ClusterFanOutImage"])
def test_what_is_blocked_on_the_leader_is_blocked_everywhere(
    cluster: ComfyCluster, unique: str, class_type: str
) -> None:
    builder = PromptBuilder()
    images = builder.add("TestSignedImage", height=4, width=4)
    blocked = builder.add("TestBlock", images=images, instances="0")
    name = "tensor" if class_type == "ClusterBroadcastTensor" else "images"
    received = builder.add(class_type, **{name: blocked})
    save(builder, received, unique)
    save(builder, images, f"{unique}-all")
    run_everywhere(cluster, builder.prompt)
    assert cluster.leader.has_saved(f"{unique}-all")
    assert not any(each.has_saved(unique) for each in cluster.instances)


def test_a_listener_to_a_blocked_broadcast_is_blocked(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    blocked = builder.add("TestBlock", images=photographs(builder, 2), instances="")
    builder.add("ClusterBroadcastTensor", tensor=blocked)
    save(builder, builder.add("ClusterListenTensorBroadcast"), unique)
    cluster.leader.client.run(builder.prompt)
    assert not cluster.leader.has_saved(unique)


def test_info_tells_each_instance_who_it_is(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    info = builder.add("ClusterInfo")
    save(builder, info[1], unique)
    save(builder, info[0], f"{unique}-text")
    run_everywhere(cluster, builder.prompt)
    for index, instance in enumerate(cluster.instances):
        assert instance.saved(unique) == [index]
        assert "Connected: 4/4 instances" in instance.saved(f"{unique}-text")[0]
        status = instance.client.get("/cluster/status")
        assert (status["instance_index"], status["connected_count"]) == (index, 4)
        assert all(peer["is_connected"] for peer in status["peers"])


def test_memory_is_freed_on_every_instance(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    image = builder.add("TestSignedImage", height=4, width=4)
    now = builder.add("ClusterFreeNow", trigger=image, unload_models=True, free_memory=True)
    later = builder.add("ClusterFinallyFree", trigger=now, unload_models=True, free_memory=True)
    save(builder, later, unique)
    for _ in range(2):
        run_everywhere(cluster, builder.prompt)
    for index, instance in enumerate(cluster.instances):
        assert_same(instance.saved(unique), [torch.full((1, 4, 4, 3), index / 100)])


def test_an_interrupt_reaches_every_instance(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    image = builder.add("TestSignedImage", height=4, width=4)
    held = builder.add("TestGate", value=image, gate=unique, instances="")
    save(builder, builder.add("ClusterGatherImages", images=held), unique)
    answer = cluster.leader.client.cluster_queue(builder.prompt)
    cluster.signals.wait_until_reached(unique, range(4))
    cluster.leader.client.interrupt()
    with pytest.raises(PromptInterrupted):
        cluster.leader.client.wait(answer["prompt_id"])
    cluster.signals.wait_until_interrupted(unique, range(4))
    cluster.wait_until_idle()
    cluster.signals.open(unique)
    run_everywhere(cluster, builder.prompt)
    assert len(cluster.leader.saved(unique)) == 4


def test_an_error_on_a_follower_fails_the_leader(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    image = builder.add("TestSignedImage", height=4, width=4)
    settings = {"name": unique, "instances": "2", "only_marked": False}
    failing = builder.add("TestFail", images=image, **settings)
    save(builder, builder.add("ClusterGatherImages", images=failing), unique)
    cluster.signals.break_node(unique)
    answer = cluster.leader.client.cluster_queue(builder.prompt)
    with pytest.raises(PromptFailed, match="instance 2"):
        cluster.leader.client.wait(answer["prompt_id"])
    cluster.wait_until_idle()
    cluster.signals.mend_node(unique)
    run_everywhere(cluster, builder.prompt)
    for instance in cluster.instances:
        assert len(instance.saved(unique)) == 4


def test_a_page_of_another_site_is_refused(cluster: ComfyCluster, unique: str) -> None:
    prompt = over_images(scale_and_blur, count=4, name=unique)
    with pytest.raises(PromptRefused) as refusal:
        cluster.leader.client.cluster_queue(prompt, origin="https://example.org")
    assert refusal.value.status == 403
    cluster.wait_until_idle()
    assert not cluster.leader.has_saved(unique)


def workflow_to_execute(name: str) -> Nodes:
    builder = PromptBuilder()
    image = builder.add("TestSignedImage", height=4, width=4)
    save(builder, builder.add("ImageInvert", image=image), name)
    return builder.prompt


def test_a_workflow_file_runs_on_every_instance(cluster: ComfyCluster, unique: str) -> None:
    workflows = cluster.leader.folder / "user" / "default" / "workflows"
    (workflows / "made.json").write_text(json.dumps(workflow_to_execute("other")), "utf-8")
    builder = PromptBuilder()
    results = builder.add(
        "ClusterExecuteWorkflow",
        **{"workflow_path": "made.json", "inputs": json.dumps({"3.name": unique, "1.width": 5})},
    )
    save(builder, results, f"{unique}-results")
    cluster.leader.client.run(builder.prompt)
    (found,) = cluster.leader.saved(f"{unique}-results")
    assert sorted(map(int, found)) == [0, 1, 2, 3]
    for index, instance in enumerate(cluster.instances):
        assert_same(instance.saved(unique), [1.0 - torch.full((1, 4, 5, 3), index / 100)])


@pytest.mark.parametrize("path", ["missing.json", "../../../comfyui.log", "/etc/hostname"])
def test_a_workflow_file_outside_of_the_folder_is_refused(cluster: ComfyCluster, path: str) -> None:
    builder = PromptBuilder()
    builder.add("ClusterExecuteWorkflow", workflow_path=path, inputs="{}")
    with pytest.raises(PromptFailed):
        cluster.leader.client.run(builder.prompt)


def test_the_current_workflow_runs_on_the_followers(cluster: ComfyCluster, unique: str) -> None:
    builder = PromptBuilder()
    image: Ref = builder.add("TestSignedImage", height=4, width=4)
    counted = builder.add("TestCount", value=image, name=unique)
    results = builder.add("ClusterExecuteCurrentWorkflow", trigger=counted)
    save(builder, results, unique)
    for runs in (1, 2):
        cluster.leader.client.run(builder.prompt)
        cluster.wait_until_idle()
        assert [cluster.signals.counts(unique)[index] for index in range(4)] == [runs] * 4
        (found,) = cluster.leader.saved(unique)
        assert sorted(map(int, found)) == [1, 2, 3]
