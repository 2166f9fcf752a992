"""Followers that are lost in the middle of a region: redo, fail, partial."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from comfy_cluster.config import OnLost
from tests.unit.work.gates import wait_until
from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of

WAITING = """
    1 Photographs count=10
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 Blur images=3.0
    5 ClusterFanInImages images=4.0
    6 Save images=5.0
"""
# Ends of all kinds; the first does not wait for the instance's gate.
MANY_ENDS = """
    1 Photographs count=9
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 Masks images=3.0
    5 ClusterFanInMasks masks=4.0
    6 Wait images=3.0
    7 Encode images=6.0
    8 Sample latent=7.0
    9 ClusterFanInLatents latent=8.0
    10 ClusterFanInImages images=6.0
    11 Save images=5.0
    12 Save images=9.0
    13 Save images=10.0
"""
GATHER = """
    1 Photographs count=7
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 ClusterGatherImages images=3.0
    5 Save images=4.0
"""
LISTS = """
    1 Photographs count=9
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 ClusterSplitBatchToList batch=3.0 items_per_element=1
    5 Blur images=4.0
    6 ClusterFanInImages images=5.0
    7 Save images=6.0
"""
SEVERAL_FAN_OUTS = """
    1 Photographs count=7
    2 Photographs count=1 seed=3
    3 Masks images=2.0
    4 Masks images=1.0
    5 ClusterFanOutImage images=1.0
    6 ClusterFanOutMask masks=3.0
    7 ClusterFanOutMask masks=4.0
    8 Compose images=5.0 masks=6.0
    9 Compose images=8.0 masks=7.0
    10 Wait images=9.0
    11 ClusterFanInImages images=10.0
    12 Save images=11.0
"""
BROADCAST = """
    1 Photographs count=7
    2 First images=1.0
    3 ClusterBroadcastTensor tensor=2.0
    4 ClusterFanOutImage images=1.0
    5 Wait images=4.0
    6 Compose images=5.0 masks=3.0
    7 ClusterFanInImages images=6.0
    8 Save images=7.0
"""
PROMPTS = {
    "waiting": WAITING,
    "many ends": MANY_ENDS,
    "lists": LISTS,
    "several fan-outs": SEVERAL_FAN_OUTS,
    "broadcast": BROADCAST,
}


def blurred(joined: Instances) -> list[list[int]]:
    """How many pictures each instance blurred, in all its prompts."""
    return [
        [
            count
            for prompt_id in host.started
            for name, count in host.records[prompt_id].computed
            if name == "Blur"
        ]
        for host in joined.hosts
    ]


def run_and_lose(joined: Instances, prompt: Any, *lost: int) -> dict[str, list[Any]]:
    """Results of a prompt in which instances are lost while they compute."""
    for each in lost:
        joined.hosts[each].computing.close()
    prompt_id = joined.leader.queue(prompt)
    for each in lost:
        joined.hosts[each].computing.wait_for()
    for each in lost:
        joined.lose(each)
    return joined.results_of(prompt_id)


@pytest.mark.parametrize("name", PROMPTS)
def test_the_others_do_what_a_lost_instance_had_to_do(name: str) -> None:
    prompt = prompt_of(PROMPTS[name])
    with Instances(4) as joined:
        results = run_and_lose(joined, prompt, 2)
        shown = joined.leader.shown[-1].text
    assert same(results, single_run(prompt))
    assert "instance 2 was lost with items" in shown
    assert "done again by instance 1, 3" in shown


def test_each_of_them_does_its_share_of_it() -> None:
    with Instances(4) as joined:
        run_and_lose(joined, prompt_of(WAITING), 2)
        assert blurred(joined) == [[3], [3, 1], [], [2, 1]]


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("instances", [2, 3])
def test_the_leader_does_what_nobody_else_can(name: str, instances: int) -> None:
    prompt = prompt_of(PROMPTS[name])
    with Instances(instances) as joined:
        results = run_and_lose(joined, prompt, *range(1, instances))
        shown = joined.leader.shown[-1].text
    assert same(results, single_run(prompt))
    assert "done again by this instance" in shown


@pytest.mark.parametrize("lost", [[1], [1, 2]])
def test_a_gather_has_what_was_done_again_too(lost: list[int]) -> None:
    prompt = prompt_of(GATHER)
    with Instances(3) as joined:
        results = run_and_lose(joined, prompt, *lost)
    assert same([torch.cat(results["5"])], single_run(prompt)["5"])


def test_who_does_it_again_is_lost_too() -> None:
    prompt = prompt_of(WAITING)
    with Instances(3) as joined:
        joined.hosts[2].computing.close()
        prompt_id = joined.leader.queue(prompt)
        joined.hosts[2].computing.wait_for()
        joined.hosts[1].computing.wait_for()  # its own share
        joined.hosts[1].wait_for(joined.hosts[1].started[0])
        joined.hosts[1].computing.close()
        joined.lose(2)
        joined.hosts[1].computing.wait_for(2)
        joined.lose(1)
        results = joined.results_of(prompt_id)
        assert blurred(joined) == [[4, 3], [3], []]
    assert same(results, single_run(prompt))


def test_lost_before_it_accepts() -> None:
    prompt = prompt_of(WAITING)
    with Instances(3) as joined:
        joined.hosts[1].validation.close()
        prompt_id = joined.leader.queue(prompt)
        joined.hosts[1].validation.wait_for()
        joined.lose(1)
        results = joined.results_of(prompt_id)
        joined.hosts[1].validation.open()
    assert same(results, single_run(prompt))


def test_lost_after_it_has_sent_its_result() -> None:
    prompt = prompt_of(WAITING)
    with Instances(3) as joined:
        joined.hosts[2].computing.close()
        prompt_id = joined.leader.queue(prompt)
        joined.hosts[2].computing.wait_for()
        wait_until(
            lambda: any("2/3 instances" in each.text for each in joined.leader.shown),
            "the result of instance 1 is here",
        )
        joined.lose(1)
        joined.hosts[2].computing.open()
        results = joined.results_of(prompt_id)
        assert blurred(joined) == [[4], [3], [3]]
    assert same(results, single_run(prompt))


def test_who_was_lost_gets_work_again_once_it_is_back() -> None:
    prompt = prompt_of(WAITING)
    with Instances(3) as joined:
        first = run_and_lose(joined, prompt, 2)
        joined.hosts[2].computing.open()
        between = joined.run(prompt)
        joined.bring_back(2)
        last = joined.run(prompt)
        assert blurred(joined) == [[4, 5, 4], [3, 3, 5, 3], [3]]
    expected = single_run(prompt)
    assert same([first, between, last], [expected] * 3)


def test_fail() -> None:
    with Instances(3, on_lost=OnLost.FAIL) as joined:
        joined.hosts[2].computing.close()
        prompt_id = joined.leader.queue(prompt_of(WAITING))
        joined.hosts[2].computing.wait_for()
        joined.lose(2)
        state = joined.leader.wait_for(prompt_id)
    assert state.failed_node.startswith("node 5")
    assert state.message.startswith("instance 2 was lost with items 7 to 9 (COMFY_CLUSTER_ON_LOST")


def test_partial() -> None:
    prompt = prompt_of(WAITING)
    with Instances(3, on_lost=OnLost.PARTIAL) as joined:
        results = run_and_lose(joined, prompt, 1)
        shown = joined.leader.shown[-1].text
    whole = single_run(prompt)["6"][0]
    assert same(results["6"], [torch.cat([whole[:4], whole[7:]])])
    assert "instance 1 was lost with items 4 to 6, and are missing" in shown


def test_followers_stop_when_the_leader_is_lost() -> None:
    prompt = prompt_of(WAITING)
    with Instances(3) as joined:
        for host in joined.hosts:
            host.computing.close()
        prompt_id = joined.leader.queue(prompt)
        for host in joined.hosts:
            host.computing.wait_for()
        joined.lose(0)
        states = [host.wait_for(host.started[0]) for host in joined.hosts[1:]]
        joined.leader.computing.open()
        results = joined.results_of(prompt_id)  # nobody is there, so it does everything
    assert [state.phase.value for state in states] == ["interrupted"] * 2
    assert same(results, single_run(prompt))
