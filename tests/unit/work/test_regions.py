"""Regions over several instances give what one instance gives, bit for bit."""

from __future__ import annotations

import pytest

from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of, region

MASKS = """
    1 Photographs count={count}
    2 Masks images=1.0
    3 ClusterFanOutMask masks=2.0
    4 Blur images=3.0
    5 ClusterFanInMasks masks=4.0
    6 Save images=5.0
"""
LATENTS = """
    1 EmptyLatents count={count} {options}
    2 Model name=a
    3 ClusterFanOutLatent latent=1.0
    4 Sample latent=3.0 model=2.0
    5 ClusterFanInLatents latent=4.0
    6 Decode latent=4.0
    7 ClusterFanInImages images=6.0
    8 Save images=5.0
    9 Save images=7.0
"""
BORN = """
    1 Photographs count={count}
    2 ClusterFanOutImage images=1.0
    3 Encode images=2.0
    4 Sample latent=3.0
    5 Sample latent=4.0 seed=8
    6 Decode latent=5.0
    7 ClusterFanInImages images=6.0
    8 ClusterFanInLatents latent=4.0
    9 Save images=7.0
    10 Save images=8.0
"""
KIND_CHANGES = """
    1 Photographs count=7
    2 ClusterFanOutImage images=1.0
    3 Masks images=2.0
    4 ClusterFanInMasks masks=3.0
    5 Save images=4.0
"""


@pytest.mark.parametrize("instances", [1, 2, 3, 4])
@pytest.mark.parametrize("items", [1, 3, 8, 10])
def test_images(instances: int, items: int) -> None:
    prompt = region(items)
    with Instances(instances, seed=items) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("instances", [2, 4])
@pytest.mark.parametrize("items", [1, 3, 10])
def test_masks(instances: int, items: int) -> None:
    prompt = prompt_of(MASKS.format(count=items))
    with Instances(instances, seed=items) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("instances", [1, 2, 3, 4])
@pytest.mark.parametrize("items", [1, 3, 10])
def test_latents_draw_the_noise_of_their_place(instances: int, items: int) -> None:
    prompt = prompt_of(LATENTS.format(count=items, options=""))
    with Instances(instances, seed=items) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))
    assert "batch_index" not in results["8"][0]


@pytest.mark.parametrize(
    "options", ["frames=3", "extras=1", "first=40", "frames=2 extras=1 first=5"]
)
def test_latents_keep_all_that_they_have(options: str) -> None:
    prompt = prompt_of(LATENTS.format(count=5, options=options))
    with Instances(3) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("instances", [1, 2, 4])
@pytest.mark.parametrize("items", [1, 3, 10])
def test_latents_that_are_born_in_the_region_know_their_place(instances: int, items: int) -> None:
    prompt = prompt_of(BORN.format(count=items))
    with Instances(instances, seed=items) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


def test_what_comes_back_may_be_of_another_kind() -> None:
    prompt = prompt_of(KIND_CHANGES)
    with Instances(3) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


def test_each_instance_computes_its_share_only() -> None:
    with Instances(4) as joined:
        joined.run(region(10))
        computed = [host.last.computed for host in joined.hosts]
    assert ("Photographs", 10) in computed[0]
    assert [dict(each)["Blur"] for each in computed] == [3, 3, 2, 2]
    assert all("Photographs" not in dict(each) for each in computed[1:])


def test_instances_without_items_get_no_order() -> None:
    with Instances(4) as joined:
        joined.run(region(2))
        assert [len(host.started) for host in joined.hosts] == [1, 1, 0, 0]


def test_no_item_at_all_stays_here() -> None:
    with Instances(3) as joined:
        results = joined.run(region(0))
        assert [len(host.started) for host in joined.hosts] == [1, 0, 0]
    assert same(results, single_run(region(0)))


def test_the_page_is_told_how_far_it_is() -> None:
    with Instances(3) as joined:
        joined.run(region(8))
        shown = joined.leader.shown
    assert {each.node_id for each in shown} == {"4"}
    assert shown[-1].text == "3/3 instances, 8/8 images"
    assert shown[-1].value == shown[-1].maximum == 8
