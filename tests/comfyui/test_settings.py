"""Settings and ComfyUI's start: whatever is wrong, ComfyUI starts and the nodes say it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping

import pytest

from tests.comfyui.client import PromptFailed
from tests.comfyui.comparing import assert_same
from tests.comfyui.conftest import add_photographs
from tests.comfyui.instances import LOOPBACK, ComfyInstance
from tests.comfyui.place import ComfyPlace
from tests.comfyui.prompts import PromptBuilder, over_images, photographs, save, scale_and_blur

# Not complete: the role and more are missing.
WRONG = {"INSTANCE_COUNT": "4", "INSTANCE_INDEX": "0"}
INFO = {"1": {"class_type": "ClusterInfo", "inputs": {}}}


@pytest.fixture(scope="module")
def process(
    comfyui: ComfyPlace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyInstance]:
    with ComfyInstance(tmp_path_factory.mktemp("single") / "instance") as instance:
        add_photographs(instance)
        yield instance


@pytest.fixture
def single(process: ComfyInstance) -> ComfyInstance:
    """A ComfyUI with our nodes and without any setting."""
    return with_settings(process, {})


def with_settings(instance: ComfyInstance, settings: Mapping[str, str]) -> ComfyInstance:
    """Started again only where they differ from those that it has."""
    if instance.settings != settings:
        instance.restart(settings)
    return instance


def test_one_process_without_settings_runs_cluster_workflows(
    single: ComfyInstance, unique: str
) -> None:
    for is_divided in (False, True):
        name = f"{unique}-{is_divided}"
        single.client.run(over_images(scale_and_blur, count=5, cluster=is_divided, name=name))
    assert_same(single.saved(f"{unique}-True"), single.saved(f"{unique}-False"))


def test_one_process_runs_whole_workflows_too(single: ComfyInstance, unique: str) -> None:
    builder = PromptBuilder()
    images = photographs(builder, 3)
    everywhere = builder.add("ClusterBroadcastTensor", tensor=images)
    gathered = builder.add("ClusterGatherImages", images=everywhere)
    save(builder, gathered, unique)
    save(builder, images, f"{unique}-plain")
    single.client.run_on_cluster(builder.prompt)
    assert_same(single.saved(unique), single.saved(f"{unique}-plain"))


def test_it_tells_its_status(single: ComfyInstance) -> None:
    status = single.client.get("/cluster/status")
    assert (status["connected_count"], status["instance_count"]) == (1, 1)


def test_the_nodes_are_there_with_their_names(single: ComfyInstance) -> None:
    info = single.client.get("/object_info")
    ours = {name: each for name, each in info.items() if name.startswith("Cluster")}
    assert len(ours) == 25
    for name, each in ours.items():
        assert each["display_name"] != name
        assert each["description"]
        assert each["category"].startswith("Cluster")


def test_a_wrong_setting_is_told_by_the_log_and_by_the_nodes(
    process: ComfyInstance, unique: str
) -> None:
    text = "Missing required environment variable"
    with_settings(process, WRONG)
    assert process.log_text().count(text) == 1
    with pytest.raises(PromptFailed, match=text):
        process.client.run(INFO)
    builder = PromptBuilder()
    save(builder, photographs(builder, 1), unique)
    process.client.run(builder.prompt)


def test_a_port_that_is_taken_is_told_by_the_nodes(process: ComfyInstance, unique: str) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as taken:
        taken.bind((LOOPBACK, 0))
        port = taken.getsockname()[1]
        settings = {
            **{"INSTANCE_COUNT": "2", "INSTANCE_INDEX": "0", "ROLE": "LEADER"},
            **{"REGISTRATION_MODE": "static", "LISTEN_ADDRESS": LOOPBACK},
            "UDP_HOSTNAMES": f"{LOOPBACK}:{port},{LOOPBACK}:{port + 1}",
        }
        with_settings(process, settings)
        with pytest.raises(PromptFailed, match="Failed to bind UDP socket"):
            process.client.run(over_images(scale_and_blur, count=2, name=unique))
