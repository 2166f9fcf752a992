"""Several regions in one workflow: in a row, side by side, one in the other's way."""

from __future__ import annotations

import pytest

from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of

IN_A_ROW = """
    1 Photographs count=7
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterFanInImages images=3.0
    5 Blur images=4.0
    6 ClusterFanOutImage images=5.0
    7 Encode images=6.0
    8 Sample latent=7.0
    9 ClusterFanInLatents latent=8.0
    10 Save images=4.0
    11 Save images=9.0
"""
SIDE_BY_SIDE = """
    1 Photographs count=7
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterFanInImages images=3.0
    5 Photographs count=3 seed=2
    6 ClusterFanOutImage images=5.0
    7 Masks images=6.0
    8 ClusterFanInMasks masks=7.0
    9 Save images=4.0
    10 Save images=8.0
"""
# The second region has a fan-out that is ready at once, and another that needs the first region.
LATE_FAN_OUT = """
    1 Photographs count=6
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterFanInImages images=3.0
    5 Masks images=4.0
    6 ClusterFanOutImage images=1.0
    7 ClusterFanOutMask masks=5.0
    8 Compose images=6.0 masks=7.0
    9 ClusterFanInImages images=8.0
    10 Save images=9.0
"""
# One mask for all items of the second region, out of the first region's result.
LATE_BROADCAST = """
    1 Photographs count=6
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterFanInImages images=3.0
    5 Blur images=4.0
    6 ClusterBroadcastTensor tensor=5.0
    7 ClusterFanOutImage images=1.0
    8 Compose images=7.0 masks=9.0
    9 First images=6.0
    10 ClusterFanInImages images=8.0
    11 Save images=10.0
"""
# Each has an end before, and one behind, what it gets of the other.
NEED_EACH_OTHER = """
    1 Photographs count=6
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterFanInImages images=3.0
    5 ClusterBroadcastTensor tensor=4.0
    6 Photographs count=6 seed=2
    7 ClusterFanOutImage images=6.0
    8 Blur images=7.0
    9 ClusterFanInImages images=8.0
    10 ClusterBroadcastTensor tensor=9.0
    11 First images=10.0
    12 Compose images=2.0 masks=11.0
    13 ClusterFanInImages images=12.0
    14 First images=5.0
    15 Compose images=7.0 masks=14.0
    16 ClusterFanInImages images=15.0
    17 Save images=13.0
    18 Save images=16.0
"""


@pytest.mark.parametrize("instances", [2, 4])
def test_in_a_row(instances: int) -> None:
    prompt = prompt_of(IN_A_ROW)
    with Instances(instances) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("seed", range(3))
def test_side_by_side(seed: int) -> None:
    prompt = prompt_of(SIDE_BY_SIDE)
    with Instances(4, seed=seed) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("seed", range(6))
def test_one_has_a_fan_out_that_needs_the_other(seed: int) -> None:
    prompt = prompt_of(LATE_FAN_OUT)
    with Instances(3, seed=seed) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("is_heard", [False, True])
def test_one_reads_a_broadcast_of_what_the_other_made(seed: int, is_heard: bool) -> None:
    prompt = prompt_of(LATE_BROADCAST)
    if is_heard:
        prompt["20"] = {"class_type": "ClusterListenTensorBroadcast", "inputs": {}}
        prompt["9"]["inputs"]["images"] = ["20", 0]
    with Instances(3, seed=seed) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


def test_regions_that_need_each_other_are_refused() -> None:
    prompt = prompt_of(NEED_EACH_OTHER)
    with Instances(3) as joined:
        state = joined.failure(prompt)
        assert not joined.hosts[1].started and not joined.hosts[2].started
    assert "need each other's results" in state.message
    assert "ClusterFanInImages" in state.message
