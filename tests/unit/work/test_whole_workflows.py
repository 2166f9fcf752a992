"""Whole workflows that every instance runs under one job ("Queue Cluster")."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from comfy_cluster.config import OnLost
from comfy_cluster.errors import WorkflowError
from comfy_cluster.work import following
from comfy_cluster.work.host import Phase
from comfy_cluster.work.service import LAST_NODE
from tests.unit.work.gates import WAIT
from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of, region
from tests.unit.work.whole import failure_on_all, queue_on_all, run_on_all

COLLECTIVES = """
    1 Photographs count={count}
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterFanInImages images=3.0
    5 ClusterGatherImages images=3.0
    6 Save images=4.0
    7 Save images=5.0
"""
MADE_BY_EACH = """
    2 ClusterInfo
    3 Photographs count=2 seed=2.1
    4 ClusterGatherImages images=3.0
    5 Save images=4.0
    6 ClusterFanInImages images=3.0
    7 Save images=6.0
"""
BROADCAST = """
    1 ClusterInfo
    2 Photographs count=3 seed=1.1
    3 ClusterBroadcastTensor tensor=2.0
    4 ClusterListenTensorBroadcast
    5 Save images=3.0
    6 Save images=4.0
"""
IN_A_ROW = """
    1 Photographs count=7
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterFanInImages images=3.0
    5 First images=4.0
    6 ClusterFanOutMask masks=5.0
    7 Blur images=6.0
    8 ClusterFanInMasks masks=7.0
    9 Save images=8.0
"""

SEVERAL_FAN_OUTS = """
    1 Photographs count={images}
    2 Photographs count={masks} seed=3
    3 Masks images=2.0
    4 ClusterFanOutImage images=1.0
    5 ClusterFanOutMask masks=3.0
    6 Compose images=4.0 masks=5.0
    7 ClusterFanInImages images=6.0
    8 Save images=7.0
"""
BORN = """
    1 Photographs count=7
    2 ClusterFanOutImage images=1.0
    3 Encode images=2.0
    4 Sample latent=3.0
    5 ClusterFanInLatents latent=4.0
    6 Save images=5.0
"""
FAILING = """
    1 Photographs count=8
    2 ClusterFanOutImage images=1.0
    3 Fail images=2b.0
    2b Wait images=2.0
    4 Blur images=3.0
    5 ClusterFanInImages images=4.0
    6 Save images=5.0
"""
WAITING = """
    1 Photographs count=7
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 ClusterFanInImages images=3.0
    5 Save images=4.0
"""
REGION_LATER = """
    1 Photographs count=4
    2 Wait images=1.0
    3 ClusterFanOutImage images=2.0
    4 Blur images=3.0
    5 ClusterFanInImages images=4.0
    6 Save images=5.0
"""
CURRENT = """
    1 Photographs count=2
    2 ClusterExecuteCurrentWorkflow trigger=1.0
    3 Save images=1.0
    4 Save images=2.0
"""


@pytest.mark.parametrize("instances", [1, 2, 4])
@pytest.mark.parametrize("items", [4, 7])
def test_fan_out_fan_in_and_gather(instances: int, items: int) -> None:
    prompt = prompt_of(COLLECTIVES.format(count=items))
    with Instances(instances) as joined:
        results = run_on_all(joined, prompt)
        computed = [host.last.computed for host in joined.hosts]
    whole = single_run(prompt)["6"]
    assert same(results[0]["6"], whole)
    for each in results:  # everybody has what everybody made
        assert len(each["7"]) == instances
        assert same(torch.cat(each["7"]), whole[0])
    assert all("Photographs" not in dict(each) for each in computed[1:])
    for index, each in enumerate(results[1:], 1):  # a fan-in gives followers their own part
        assert same(each["6"], [each["7"][index]])


def test_fewer_items_than_instances() -> None:
    prompt = prompt_of(COLLECTIVES.format(count=2))
    with Instances(4) as joined:
        results = run_on_all(joined, prompt)
    assert same(results[0]["6"], single_run(prompt)["6"])
    assert len(results[0]["7"]) == len(results[1]["7"]) == 2
    assert results[2] == results[3] == {}


def test_gather_and_fan_in_of_what_each_made_by_itself() -> None:
    prompt = prompt_of(MADE_BY_EACH)
    with Instances(3) as joined:
        results = run_on_all(joined, prompt)
    own = [
        single_run(prompt_of(f"1 Photographs count=2 seed={i}\n2 Save images=1.0"))
        for i in range(3)
    ]
    made = [each["2"][0] for each in own]
    assert all(same(each["5"], made) for each in results)
    assert same(results[0]["7"], [torch.cat(made)])
    assert same(results[2]["7"], [made[2]])


def test_all_get_what_the_leader_broadcasts() -> None:
    prompt = prompt_of(BROADCAST)
    with Instances(3) as joined:
        results = run_on_all(joined, prompt)
        assert all("Photographs" not in dict(host.last.computed) for host in joined.hosts[1:])
    expected = single_run(prompt)
    assert all(same(each, expected) for each in results)


def test_a_region_of_fewer_items_behind_another_one() -> None:
    prompt = prompt_of(IN_A_ROW)
    with Instances(3) as joined:
        results = run_on_all(joined, prompt)
    assert same(results[0], single_run(prompt))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("images", "masks"), [(7, 7), (7, 1), (1, 7), (1, 1), (2, 2)])
def test_several_fan_outs(images: int, masks: int, seed: int) -> None:
    prompt = prompt_of(SEVERAL_FAN_OUTS.format(images=images, masks=masks))
    with Instances(3, seed=seed) as joined:
        results = run_on_all(joined, prompt)
    assert same(results[0], single_run(prompt))


def test_latents_that_are_born_behind_a_fan_out_know_their_place() -> None:
    prompt = prompt_of(BORN)
    with Instances(3) as joined:
        results = run_on_all(joined, prompt)
    assert same(results[0], single_run(prompt))


def test_without_any_cluster_node() -> None:
    prompt = prompt_of("1 Photographs count=2\n2 Save images=1.0")
    with Instances(3) as joined:
        results = run_on_all(joined, prompt)
    assert same(results, [single_run(prompt)] * 3)


def test_again_and_again() -> None:
    prompt = prompt_of(COLLECTIVES.format(count=7))
    expected = single_run(prompt)["6"]
    with Instances(3) as joined:
        for _ in range(3):
            assert same(run_on_all(joined, prompt)[0]["6"], expected)
            assert same(joined.run(region()), single_run(region()))


def test_several_of_them_while_followers_are_busy() -> None:
    prompts = [prompt_of(COLLECTIVES.format(count=count)) for count in (7, 5, 6)]
    with Instances(3) as joined:
        follower = joined.hosts[1]
        follower.computing.close()
        own = follower.queue(
            prompt_of("1 Photographs count=1\n2 Wait images=1.0\n3 Save images=2.0")
        )
        follower.computing.wait_for()
        ids = [queue_on_all(joined, each) for each in prompts]
        follower.computing.open()
        results = [joined.results_of(each)["6"] for each in ids]
        follower.wait_for(own)
    assert same(results, [single_run(each)["6"] for each in prompts])


def test_a_prompt_before_it_still_needs_the_followers() -> None:
    with Instances(3) as joined:
        joined.leader.computing.close()
        first = joined.leader.queue(prompt_of(REGION_LATER))
        joined.leader.computing.wait_for()
        second = queue_on_all(joined, prompt_of(COLLECTIVES.format(count=7)))
        assert all(host.started == [] for host in joined.hosts[1:])  # it begins where the leader is
        joined.leader.computing.open()
        results = joined.results_of(first)["6"], joined.results_of(second)["6"]
    assert same(results[0], single_run(prompt_of(REGION_LATER))["6"])
    assert same(results[1], single_run(prompt_of(COLLECTIVES.format(count=7)))["6"])


def test_what_the_page_sends_along_reaches_the_followers() -> None:
    extra_data: dict[str, Any] = {"extra_pnginfo": {"workflow": 1}}
    own: dict[str, Any] = {"client_id": "page", "api_key_comfy_org": "secret"}
    with Instances(2) as joined:
        queued = joined.works[0].queue_on_all(region(4), extra_data | own, outputs=["4", "5"])
        queued[2].result(WAIT)
        joined.results_of(queued[1])
        joined.wait_until_over()
        assert joined.leader.last.extra_data == extra_data | own
        assert joined.hosts[1].last.extra_data == extra_data


def test_what_each_instance_made_is_told() -> None:
    prompt = prompt_of(CURRENT)
    with Instances(3) as joined:
        results = joined.run(prompt)
        joined.wait_until_over()
        assert [len(host.started) for host in joined.hosts] == [1, 1, 1]
    made = {
        str(index): {each: {"files": [f"{index}/{each}.png"]} for each in ("3", "4")}
        for index in (1, 2)
    }
    assert results["4"] == [made]


def test_an_error_on_a_follower_fails_what_waits_on_the_leader() -> None:
    with Instances(3) as joined:
        joined.hosts[2].fails = True
        state = failure_on_all(joined, prompt_of(FAILING))
    assert state.message == "instance 2, node 3 (Fail): out of paint"


def test_it_ends_on_the_leader_when_it_has_ended_everywhere() -> None:
    alone = prompt_of("1 Photographs count=1\n2 Wait images=1.0\n3 Save images=2.0")
    with Instances(3) as joined:
        joined.hosts[2].computing.close()
        prompt_id = queue_on_all(joined, alone)
        joined.hosts[2].computing.wait_for()
        while "3" not in joined.leader.last.saved:
            time.sleep(0.001)
        assert joined.leader.state_of(prompt_id).phase is Phase.RUNNING
        joined.leader.interrupt()
        assert joined.leader.wait_for(prompt_id).phase is Phase.INTERRUPTED
        assert joined.hosts[2].wait_for(joined.hosts[2].started[0]).phase is Phase.INTERRUPTED


def test_an_error_that_nothing_waits_for_fails_it_on_the_leader() -> None:
    prompt = prompt_of("1 Photographs count=1\n2 Fail images=1.0\n3 Save images=2.0")
    with Instances(3) as joined:
        joined.hosts[2].fails = True
        state = failure_on_all(joined, prompt)
    assert state.message == "instance 2, node 2 (Fail): out of paint"


def test_an_error_on_the_leader_stops_the_followers() -> None:
    with Instances(3) as joined:
        for host in joined.hosts:
            host.computing.close()
        joined.leader.fails = True
        prompt_id = queue_on_all(joined, prompt_of(FAILING))
        for host in joined.hosts:
            host.computing.wait_for()
        joined.leader.computing.open()
        assert "out of paint" in joined.leader.wait_for(prompt_id).message
        states = [host.wait_for(host.started[0]) for host in joined.hosts[1:]]
    assert [state.phase.value for state in states] == ["interrupted"] * 2


def test_an_interrupt_on_the_leader_stops_the_followers() -> None:
    with Instances(3) as joined:
        joined.hosts[1].computing.close()
        prompt_id = queue_on_all(joined, prompt_of(FAILING))
        joined.hosts[1].computing.wait_for()
        joined.leader.interrupt()
        assert joined.leader.wait_for(prompt_id).phase is Phase.INTERRUPTED
        assert joined.hosts[1].wait_for(joined.hosts[1].started[0]).phase is Phase.INTERRUPTED


def test_what_would_wait_for_itself_is_refused() -> None:
    text = """
        1 Photographs count=2
        2 ClusterExecuteCurrentWorkflow trigger=1.0
        3 ClusterBroadcastTensor tensor=2.0
        4 Save images=3.0
    """
    with Instances(2) as joined, pytest.raises(WorkflowError, match="waits until the other"):
        queue_on_all(joined, prompt_of(text))


def test_it_is_taken_out_of_the_leaders_queue() -> None:
    with Instances(2) as joined:
        joined.leader.computing.close()
        first = joined.leader.queue(
            prompt_of("1 Photographs count=1\n2 Wait images=1.0\n3 Save images=2.0")
        )
        joined.leader.computing.wait_for()
        prompt_id = queue_on_all(joined, prompt_of(COLLECTIVES.format(count=4)))
        joined.leader.delete_what_waits()
        assert joined.leader.wait_for(prompt_id).phase is Phase.GONE
        joined.leader.computing.open()
        joined.leader.wait_for(first)


def test_one_instance_cannot_run_it() -> None:
    with Instances(3, lacks={2: ["Blur"]}) as joined:
        with pytest.raises(WorkflowError, match="instance 2 lacks node class Blur"):
            queue_on_all(joined, prompt_of(COLLECTIVES.format(count=4)))
        joined.wait_until_over()
        assert joined.leader.started == joined.hosts[2].started == []


def test_the_leader_cannot_run_it() -> None:
    with Instances(3, lacks={0: ["Blur"]}) as joined:
        with pytest.raises(WorkflowError, match=r"^lacks node class Blur"):
            queue_on_all(joined, prompt_of(COLLECTIVES.format(count=4)))
        joined.wait_until_over()


def test_followers_queue_nothing_on_all() -> None:
    with (
        Instances(2) as joined,
        pytest.raises(WorkflowError, match="this is instance 1, a follower"),
    ):
        joined.works[1].queue_on_all(region(), {}, outputs=["5"])


def test_what_cannot_be_broadcast_fails_on_all() -> None:
    text = """
        1 Model name=a
        2 ClusterBroadcastTensor tensor=1.0
        3 Save images=2.0
    """
    with Instances(3) as joined:
        state = failure_on_all(joined, prompt_of(text))
    assert "models and conditioning are made on each instance" in state.message


def test_a_lost_instance_is_made_good_by_the_leader() -> None:
    prompt = prompt_of(WAITING)
    with Instances(3) as joined:
        joined.hosts[2].computing.close()
        prompt_id = queue_on_all(joined, prompt)
        joined.hosts[2].computing.wait_for()
        joined.lose(2)
        results = joined.results_of(prompt_id)
    assert same(results, single_run(prompt))


def test_partial() -> None:
    prompt = prompt_of(WAITING)
    with Instances(3, on_lost=OnLost.PARTIAL) as joined:
        joined.hosts[2].computing.close()
        prompt_id = queue_on_all(joined, prompt)
        joined.hosts[2].computing.wait_for()
        joined.lose(2)
        results = joined.results_of(prompt_id)
        shown = joined.leader.shown[-1].text
    assert same(results["5"], [single_run(prompt)["5"][0][:5]])
    assert "instance 2 was lost with items 5 to 6, and are missing in the result" in shown


def test_fail() -> None:
    with Instances(3, on_lost=OnLost.FAIL) as joined:
        joined.hosts[2].computing.close()
        prompt_id = queue_on_all(joined, prompt_of(WAITING))
        joined.hosts[2].computing.wait_for()
        joined.lose(2)
        assert "instance 2 was lost" in joined.leader.wait_for(prompt_id).message


def test_what_a_lost_instance_made_by_itself_cannot_be_made_again() -> None:
    prompt = prompt_of(
        """
        1 Photographs count=2
        2 Wait images=1.0
        3 ClusterFanInImages images=2.0
        4 Save images=3.0
        """
    )
    with Instances(3) as joined:
        joined.hosts[2].computing.close()
        prompt_id = queue_on_all(joined, prompt)
        joined.hosts[2].computing.wait_for()
        joined.lose(2)
        state = joined.leader.wait_for(prompt_id)
    assert "instance 2 was lost, and what it made cannot be made again" in state.message


GATHERED = """
    1 Photographs count=6
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 ClusterGatherImages images=3.0
    5 Save images=4.0
"""


@pytest.mark.parametrize("on_lost", [OnLost.PARTIAL, OnLost.REDO])
def test_who_needs_a_lost_instance_is_not_to_blame(on_lost: OnLost) -> None:
    prompt = prompt_of(GATHERED)
    with Instances(3, on_lost=on_lost) as joined:
        for host in joined.hosts:
            host.computing.close()
        prompt_id = queue_on_all(joined, prompt)
        for host in joined.hosts:
            host.computing.wait_for()
        joined.lose(2)
        joined.hosts[1].computing.open()
        if on_lost is OnLost.REDO:  # it cannot make the lost items, and says so
            joined.hosts[1].wait_for(joined.hosts[1].started[0])
        joined.leader.computing.open()
        results = joined.results_of(prompt_id)["5"]
        joined.hosts[2].computing.open()
        assert any("instance 2 was lost" in each for each in joined.leader.warnings)
    count = 3 if on_lost is OnLost.REDO else 2
    expected = single_run(prompt)["5"][0]
    assert same(results, [expected[2 * index : 2 * index + 2] for index in range(count)])


def test_a_lost_instance_that_nothing_waits_for_is_told() -> None:
    prompt = prompt_of("1 Photographs count=1\n2 Wait images=1.0\n3 Save images=2.0")
    with Instances(3) as joined:
        joined.hosts[2].computing.close()
        prompt_id = queue_on_all(joined, prompt)
        joined.hosts[2].computing.wait_for()
        joined.lose(2)
        joined.results_of(prompt_id)
        joined.hosts[2].computing.open()
        (warning,) = joined.leader.warnings
    assert "instance 2 was lost" in warning and "output nodes make is missing" in warning


def test_a_node_may_have_the_id_of_the_one_that_waits() -> None:
    prompt = prompt_of("1 Photographs count=4\n2 ClusterFanOutImage images=1.0\n4 Save images=2.0")
    prompt[LAST_NODE] = prompt.pop("2")
    prompt["4"]["inputs"]["images"] = [LAST_NODE, 0]
    with Instances(2) as joined:
        results = run_on_all(joined, prompt)
    batch = single_run(prompt)["4"][0]
    assert same([each["4"] for each in results], [[batch[:2]], [batch[2:]]])


def test_nothing_is_fanned_out_and_in() -> None:
    prompt = prompt_of(GATHERED.format(count=0).replace("count=6", "count=0"))
    prompt["4"]["class_type"] = "ClusterFanInImages"
    with Instances(3) as joined:
        results = run_on_all(joined, prompt)[0]
    assert same(results, single_run(prompt))


def test_a_result_that_is_too_large_to_be_sent_ends_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "LARGEST_MESSAGE_PAYLOAD", 10)
    with Instances(2) as joined:
        results = joined.run(prompt_of(CURRENT))["4"]
    assert "cannot be sent" in results[0]["1"]["3"]["error"]
