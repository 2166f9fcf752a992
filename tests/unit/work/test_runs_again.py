"""The second, third, ... run of a workflow: the same, changed, after whatever happened."""

from __future__ import annotations

import copy

import pytest

from comfy_cluster.work.host import Phase
from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of, region

LONG = """
    1 Photographs count=7
    2 Blur images=1.0
    3 ClusterFanOutImage images=2.0
    4 Encode images=3.0
    5 Model name=a
    6 Sample latent=4.0 model=5.0 seed=1
    7 Decode latent=6.0
    8 ClusterFanInImages images=7.0
    9 Blur images=8.0
    10 Save images=9.0
"""
CHANGES = {
    "upstream": ("1", "count", 9),
    "inside": ("6", "seed", 2),
    "a model": ("5", "name", "b"),
    "fewer items": ("1", "count", 2),
    "one item": ("1", "count", 1),
}


@pytest.mark.parametrize("instances", [1, 3])
def test_the_same_three_times(instances: int) -> None:
    prompt = prompt_of(LONG)
    expected = single_run(prompt)
    with Instances(instances) as joined:
        for _ in range(3):
            results = joined.run(prompt)
            assert same(results, expected)
        assert ("Photographs", 7) not in joined.leader.last.computed  # the cache has it


def test_followers_keep_what_has_not_changed() -> None:
    with Instances(2) as joined:
        for _ in range(2):
            joined.run(prompt_of(LONG))
        models = [dict(joined.hosts[1].records[each].computed) for each in joined.hosts[1].started]
    assert ["Model" in each for each in models] == [True, False]


@pytest.mark.parametrize("what", CHANGES)
def test_changed_and_back(what: str) -> None:
    node_id, name, value = CHANGES[what]
    prompt = prompt_of(LONG)
    changed = copy.deepcopy(prompt)
    changed[node_id]["inputs"][name] = value
    with Instances(3) as joined:
        for each in (prompt, changed, prompt):
            assert same(joined.run(each), single_run(each))


def test_nodes_come_and_go() -> None:
    prompt = prompt_of(LONG)
    shorter = copy.deepcopy(prompt)
    shorter["8"]["inputs"]["images"] = ["3", 0]
    with Instances(3) as joined:
        for each in (prompt, shorter, region(5), prompt):
            assert same(joined.run(each), single_run(each))


def test_many_prompts_in_the_queue() -> None:
    prompts = [prompt_of(LONG), region(5), prompt_of(LONG), region(1), region(10)] * 2
    with Instances(3) as joined:
        ids = [joined.leader.queue(each) for each in prompts]
        results = [joined.results_of(each) for each in ids]
    assert same(results, [single_run(each) for each in prompts])


def test_after_a_failure_an_interrupt_and_a_loss() -> None:
    prompt = prompt_of(
        """
        1 Photographs count=8
        2 ClusterFanOutImage images=1.0
        3 Wait images=2.0
        4 Fail images=3.0
        5 ClusterFanInImages images=4.0
        6 Save images=5.0
        """
    )
    expected = single_run(prompt)
    with Instances(3) as joined:
        for _ in range(2):
            joined.hosts[1].fails = True
            assert joined.failure(prompt)
            joined.hosts[1].fails = False
            assert same(joined.run(prompt), expected)

            seen = joined.hosts[2].computing.passed_count
            joined.hosts[2].computing.close()
            prompt_id = joined.leader.queue(prompt)
            joined.hosts[2].computing.wait_for(seen + 1)
            joined.leader.interrupt()
            assert joined.leader.wait_for(prompt_id).phase is Phase.INTERRUPTED

            seen = joined.hosts[2].computing.passed_count
            prompt_id = joined.leader.queue(prompt)
            joined.hosts[2].computing.wait_for(seen + 1)
            joined.lose(2)
            assert same(joined.results_of(prompt_id), expected)
            joined.hosts[2].computing.open()
            joined.bring_back(2)
            assert same(joined.run(prompt), expected)
