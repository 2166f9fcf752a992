"""What else is in and around a region: broadcasts, subgraphs, other outputs, other prompts."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_cluster.work.host import Phase
from tests.unit.work.fake_nodes import photographs
from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of, region

BROADCAST = """
    1 Photographs count=7
    2 Photographs count=1 seed=3
    3 First images=2.0
    4 ClusterBroadcastTensor tensor=3.0
    5 ClusterFanOutImage images=1.0
    6 Compose images=5.0 masks={mask}.0
    7 ClusterFanInImages images=6.0
    8 Save images=7.0
"""
BROADCAST_LATENT = """
    1 EmptyLatents count=1 extras=1
    2 Sample latent=1.0
    3 ClusterBroadcastTensor tensor=2.0
    4 Decode latent=3.0
    5 First images=4.0
    6 Photographs count=5 size=4
    7 ClusterFanOutImage images=6.0
    8 Compose images=7.0 masks=5.0
    9 ClusterFanInImages images=8.0
    10 Save images=9.0
"""
LOADED = """
    1 ClusterBroadcastLoadedImage
    2 ClusterFanOutImage images=3.0
    3 Photographs count=6
    4 Compose images=2.0 masks=1.1
    5 ClusterFanInImages images=4.0
    6 Save images=5.0
"""
SUBGRAPH = """
    1 Photographs count=6
    2 ClusterFanOutImage images=1.0
    3 ClusterStartSubgraph input=2.0 subgraph_id=outer
    4 Blur images=3.0
    5 ClusterUseSubgraph input=4.0 subgraph_id=inner
    6 ClusterEndSubgraph input=5.0
    7 ClusterFanInImages images=6.0
    8 Photographs count=5 seed=2
    9 ClusterFanOutImage images=8.0
    10 ClusterUseSubgraph input=9.0 subgraph_id=outer
    11 ClusterFanInImages images=10.0
    12 Photographs count=2
    13 ClusterStartSubgraph input=12.0 subgraph_id=inner
    14 Blur images=13.0
    15 Blur images=14.0
    16 ClusterEndSubgraph input=15.0
    17 Save images=7.0
    18 Save images=11.0
"""
REGION_IN_SUBGRAPH = """
    1 Photographs count=6
    2 ClusterStartSubgraph input=1.0 subgraph_id=part
    3 ClusterFanOutImage images=2.0
    4 Blur images=3.0
    5 ClusterFanInImages images=4.0
    6 ClusterEndSubgraph input=5.0
    7 Photographs count=5 seed=2
    8 ClusterUseSubgraph input=7.0 subgraph_id=part
    9 Save images=6.0
    10 Save images=8.0
"""
COLON_IDS = """
    12 Photographs count=6
    12:1 ClusterFanOutImage images=12.0
    12:3:7 Blur images=12:1.0
    13 ClusterFanInImages images=12:3:7.0
    14 Save images=13.0
"""
TWO_OUTPUTS = """
    1 Photographs count=6
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterFanInImages images=3.0
    5 Save images=4.0
    6 Photographs count=3
    7 ClusterFanOutMask masks=6.0
    8 Save images=7.0
"""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("is_heard", [False, True])
def test_a_broadcast_into_a_region(seed: int, is_heard: bool) -> None:
    prompt = prompt_of(BROADCAST.format(mask="9" if is_heard else "4"))
    if is_heard:
        prompt["9"] = {"class_type": "ClusterListenTensorBroadcast", "inputs": {}}
    with Instances(3, seed=seed) as joined:
        results = joined.run(prompt)
        assert all("Photographs" not in dict(host.last.computed) for host in joined.hosts[1:])
    assert same(results, single_run(prompt))


def test_a_latent_is_broadcast_whole() -> None:
    prompt = prompt_of(BROADCAST_LATENT)
    with Instances(3) as joined:
        results = joined.run(prompt)
        assert all("Sample" not in dict(host.last.computed) for host in joined.hosts[1:])
    assert same(results, single_run(prompt))


def test_an_image_file_of_the_leader() -> None:
    picture = photographs(1, seed=9)
    images = {"cat.png": (picture, picture.mean(dim=-1))}
    prompt = prompt_of(LOADED)
    prompt["1"]["inputs"]["image"] = "cat.png"
    with Instances(3, images=images) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt, images=images))


@pytest.mark.parametrize("text", [SUBGRAPH, REGION_IN_SUBGRAPH], ids=["nested", "region inside"])
@pytest.mark.parametrize("instances", [2, 3])
def test_subgraphs(text: str, instances: int) -> None:
    prompt = prompt_of(text)
    with Instances(instances) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


def test_the_ids_of_comfyuis_own_subgraphs() -> None:
    prompt = prompt_of(COLON_IDS)
    with Instances(3) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


def test_what_is_not_asked_for_does_not_count() -> None:
    prompt = prompt_of(TWO_OUTPUTS)  # of which one leads to no fan-in
    with Instances(3) as joined:
        assert "leads to no ClusterFanIn" in joined.failure(prompt).message
        prompt_id = joined.leader.queue(prompt, outputs=["5"])
        results = joined.results_of(prompt_id)
    assert same(results["5"], single_run(prompt)["5"])


def test_what_the_page_sends_along_reaches_the_followers() -> None:
    extra_data: dict[str, Any] = {"extra_pnginfo": {"workflow": {"nodes": []}}}
    with Instances(2) as joined:
        prompt_id = joined.leader.queue(region(), extra_data=extra_data)
        joined.results_of(prompt_id)
        assert joined.hosts[1].last.extra_data == extra_data


def test_a_prompt_of_a_followers_own_page_runs_alone() -> None:
    prompt = region(5)
    with Instances(3) as joined:
        assert joined.hosts[1].run(prompt).phase is Phase.SUCCEEDED
        assert same(joined.hosts[1].last.saved, single_run(prompt))
        assert not joined.leader.started and not joined.hosts[2].started


def test_a_prompt_without_cluster_nodes_asks_for_nothing() -> None:
    prompt = prompt_of("1 Photographs count=2\n2 Blur images=1.0\n3 Save images=2.0")
    with Instances(2, is_connected=False) as joined:
        assert same(joined.run(prompt), single_run(prompt))
        joined.connect()
