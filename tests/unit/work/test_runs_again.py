"""The second, third, ... run of a workflow: the same, changed, after whatever happened."""

from __future__ import annotations

import copy

import pytest

from comfy_cluster.work.host import Phase
from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of, region
from tests.unit.work.whole import run_on_all

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


TWICE = """
    1 Photographs count=7
    2 Photographs count=7 seed=3
    3 Masks images=2.0
    4 ClusterFanOutImage images=1.0
    5 ClusterFanOutMask masks=3.0
    6 Compose images=4.0 masks=5.0
    7 First images=1.0
    8 ClusterBroadcastTensor tensor=7.0
    9 ClusterListenTensorBroadcast
    10 Compose images=6.0 masks=8.0
    11 Compose images=10.0 masks=9.0
    12 ClusterFanInImages images=11.0
    13 ClusterGatherImages images=11.0
    14 Save images=12.0
"""
RUN_TWICE = {
    "a fan-out": ["ClusterFanOutImage"],
    "both fan-outs": ["ClusterFanOutImage", "ClusterFanOutMask"],
    "broadcasts": ["ClusterBroadcastTensor", "ClusterListenTensorBroadcast"],
    "ends": ["ClusterFanInImages", "ClusterGatherImages"],
    "in between": ["Compose"],
}


@pytest.mark.parametrize("what", RUN_TWICE)
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("instance", [0, 1])
@pytest.mark.parametrize("seed", range(2))
def test_nodes_that_run_twice_in_one_prompt(
    what: str, is_whole: bool, instance: int, seed: int
) -> None:
    prompt = prompt_of(TWICE)
    with Instances(3, seed=seed) as joined:
        joined.hosts[instance].runs_twice = RUN_TWICE[what]
        results = run_on_all(joined, prompt)[0] if is_whole else joined.run(prompt)
    assert same(results, single_run(prompt))


def test_the_leader_forgets_a_region_and_does_what_was_lost() -> None:
    prompt = prompt_of(TWICE)
    with Instances(2) as joined:
        joined.leader.runs_twice = RUN_TWICE["ends"]
        joined.hosts[1].validation.close()
        prompt_id = joined.leader.queue(prompt)
        joined.hosts[1].validation.wait_for()
        joined.lose(1)
        assert same(joined.results_of(prompt_id), single_run(prompt))
        joined.hosts[1].validation.open()
