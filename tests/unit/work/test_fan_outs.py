"""Several fan-outs that lead into one region."""

from __future__ import annotations

import pytest

from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of
from tests.unit.work.whole import run_on_all

TWO = """
    1 Photographs count={images}
    2 Photographs count={masks} seed=3
    3 Masks images=2.0
    4 ClusterFanOutImage images=1.0
    5 ClusterFanOutMask masks=3.0
    6 Compose images=4.0 masks=5.0
    7 ClusterFanInImages images=6.0
    8 Save images=7.0
"""
THREE = """
    1 Photographs count=7
    2 Masks images=1.0
    3 Photographs count=1 seed=4
    4 ClusterFanOutImage images=1.0
    5 ClusterFanOutMask masks=2.0
    6 ClusterFanOutImage images=3.0
    7 Compose images=4.0 masks=5.0
    8 Compose images=7.0 masks=6.0
    9 ClusterFanInImages images=8.0
    10 Save images=9.0
"""
ENCODED_FOR_ALL = """
    1 Photographs count={count}
    2 ClusterFanOutImage images=1.0
    3 Photographs count=1 seed=3
    4 ClusterFanOutImage images=3.0
    5 Encode images=4.0
    6 Sample latent=5.0
    7 Decode latent=6.0
    8 Compose images=2.0 masks=7.0
    9 ClusterFanInImages images=8.0
    10 Save images=9.0
"""
CHAINED = """
    1 Photographs count=6
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterFanInImages images=3.0
    5 Masks images=4.0
    6 ClusterFanOutMask masks=5.0
    7 Compose images=3.0 masks=6.0
    8 ClusterFanInImages images=7.0
    9 Save images=8.0
"""


@pytest.mark.parametrize("seed", range(4))  # which of them runs first is chance
@pytest.mark.parametrize(("images", "masks"), [(7, 7), (7, 1), (1, 7), (1, 1), (2, 2)])
def test_they_agree_or_have_one_item_for_all(images: int, masks: int, seed: int) -> None:
    prompt = prompt_of(TWO.format(images=images, masks=masks))
    with Instances(3, seed=seed) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("seed", range(4))
def test_three_of_them(seed: int) -> None:
    prompt = prompt_of(THREE)
    with Instances(4, seed=seed) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("seed", range(4))
def test_they_disagree(seed: int) -> None:
    prompt = prompt_of(TWO.format(images=7, masks=3))
    with Instances(3, seed=seed) as joined:
        state = joined.failure(prompt)
    assert "7" in state.message and "3" in state.message
    assert "ClusterFanOutImage" in state.message or "ClusterFanOutMask" in state.message
    assert state.failed_node.startswith(("node 4", "node 5"))


@pytest.mark.parametrize("seed", range(4))
def test_one_comes_after_what_the_region_made(seed: int) -> None:
    prompt = prompt_of(CHAINED)
    with Instances(3, seed=seed) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("count", [3, 6])
@pytest.mark.parametrize("is_whole", [False, True])
def test_a_latent_of_the_one_item_for_all_is_the_first_one_everywhere(
    count: int, is_whole: bool
) -> None:
    prompt = prompt_of(ENCODED_FOR_ALL.format(count=count))
    with Instances(3) as joined:
        results = run_on_all(joined, prompt)[0] if is_whole else joined.run(prompt)
    assert same(results, single_run(prompt))


def test_so_it_is_where_a_lost_instance_s_items_are_done_again() -> None:
    prompt = prompt_of(ENCODED_FOR_ALL.format(count=3))
    prompt["8w"] = {"class_type": "Wait", "inputs": {"images": ["8", 0]}}
    prompt["9"]["inputs"]["images"] = ["8w", 0]
    with Instances(2) as joined:
        joined.hosts[1].computing.close()
        prompt_id = joined.leader.queue(prompt)
        joined.hosts[1].computing.wait_for()
        joined.lose(1)
        results = joined.results_of(prompt_id)
        joined.hosts[1].computing.open()
    assert same(results, single_run(prompt))
