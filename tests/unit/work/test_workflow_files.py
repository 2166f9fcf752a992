"""ClusterExecuteWorkflow: a file of the leader, on every instance, inside of a prompt."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from comfy_cluster.config import OnLost
from comfy_cluster.work.host import Phase
from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of

PART = prompt_of(
    """
    1 Photographs count=7
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 Fail images=3.0
    5 Encode images=4.0
    6 Sample latent=5.0
    7 ClusterFanInLatents latent=6.0
    8 Save images=7.0
    """
)
ALL_KINDS = prompt_of(
    """
    1 Photographs count=5
    2 ClusterFanOutImage images=1.0
    3 ClusterGatherImages images=2.0
    4 ClusterBroadcastTensor tensor=1.0
    5 ClusterListenTensorBroadcast
    6 ClusterSplitBatchToList batch=5.0 items_per_element=1
    7 Save images=3.0
    8 Save images=6.0
    """
)


def calling(path: str, **inputs: Any) -> dict[str, dict[str, Any]]:
    """A prompt that runs a file."""
    prompt = prompt_of("a ClusterExecuteWorkflow\nb Save images=a.0")
    prompt["a"]["inputs"] |= {"workflow_path": path, "inputs": json.dumps(inputs)}
    return prompt


def saved_in_file(results: dict[str, list[Any]], node_id: str) -> list[Any]:
    """What a node of the file got on the leader."""
    return next(values for each, values in results.items() if each.endswith(f".{node_id}"))


@pytest.mark.parametrize("instances", [2, 4])
def test_every_instance_runs_it(instances: int) -> None:
    with Instances(instances, files={"part.json": PART}) as joined:
        results = joined.run(calling("part.json"))
    assert same(saved_in_file(results, "8"), single_run(PART)["8"])
    made = {str(each): {"8": {"files": [f"{each}/8.png"]}} for each in range(1, instances)}
    assert results["b"] == [{"0": {}, **made}]


def test_again_with_other_inputs() -> None:
    other = copy.deepcopy(PART)
    other["1"]["inputs"]["count"] = 3
    with Instances(3, files={"part.json": PART}) as joined:
        for _ in range(2):
            results = joined.run(calling("part.json"))
            assert same(saved_in_file(results, "8"), single_run(PART)["8"])
            results = joined.run(calling("part.json", **{"1.count": 3}))
            assert same(saved_in_file(results, "8"), single_run(other)["8"])


@pytest.mark.parametrize("seed", range(3))
def test_collectives_lists_and_listeners_in_a_file(seed: int) -> None:
    with Instances(3, seed=seed, files={"all.json": ALL_KINDS}) as joined:
        results = joined.run(calling("all.json"))
        followers = [host.last.saved for host in joined.hosts[1:]]
    assert len(results["b"]) == 1  # however long the lists in the file are
    assert [len(each) for each in saved_in_file(results, "7")] == [2, 2, 1]
    assert same(saved_in_file(results, "8"), single_run(ALL_KINDS)["8"])
    assert all(same(each["7"], saved_in_file(results, "7")) for each in followers)


def test_two_files_and_a_file_that_runs_a_file() -> None:
    files = {"part.json": PART, "outer.json": calling("part.json")}
    prompt = calling("outer.json")
    prompt |= {f"{each}2": node for each, node in copy.deepcopy(calling("part.json")).items()}
    prompt["b2"]["inputs"]["images"] = ["a2", 0]
    with Instances(3, files=files) as joined:
        results = joined.run(prompt)
    expected = single_run(PART)["8"]
    inner = [values for node_id, values in results.items() if node_id.endswith(".8")]
    assert same(inner, [expected] * 2)


def test_an_error_on_a_follower() -> None:
    with Instances(3, files={"part.json": PART}) as joined:
        joined.hosts[1].fails = True
        state = joined.failure(calling("part.json"))
    assert state.failed_node == "node a (ClusterExecuteWorkflow)"
    assert state.message == "instance 1, node 4 (Fail): out of paint"


def test_an_error_on_the_leader() -> None:
    with Instances(3, files={"part.json": PART}) as joined:
        joined.leader.fails = True
        state = joined.failure(calling("part.json"))
    assert state.failed_node == "node a (ClusterExecuteWorkflow)"
    assert state.message == "out of paint"


def test_an_interrupt() -> None:
    with Instances(3, files={"part.json": PART}) as joined:
        joined.hosts[1].computing.close()
        prompt_id = joined.leader.queue(calling("part.json"))
        joined.hosts[1].computing.wait_for()
        joined.leader.interrupt()
        assert joined.leader.wait_for(prompt_id).phase is Phase.INTERRUPTED
        assert joined.hosts[1].wait_for(joined.hosts[1].started[0]).phase is Phase.INTERRUPTED


def test_one_instance_cannot_run_it() -> None:
    with Instances(3, files={"part.json": PART}, lacks={2: ["Sample"]}) as joined:
        state = joined.failure(calling("part.json"))
        assert joined.leader.last.computed == []
    assert state.message.startswith("instance 2 lacks node class Sample")


def test_a_lost_instance_is_made_good_by_the_leader() -> None:
    with Instances(3, files={"part.json": PART}) as joined:
        joined.hosts[2].computing.close()
        prompt_id = joined.leader.queue(calling("part.json"))
        joined.hosts[2].computing.wait_for()
        joined.lose(2)
        results = joined.results_of(prompt_id)
    assert same(saved_in_file(results, "8"), single_run(PART)["8"])
    assert list(results["b"][0]) == ["0", "1"]


def test_a_lost_instance_is_an_error_where_it_is_to_be() -> None:
    with Instances(2, files={"part.json": PART}, on_lost=OnLost.FAIL) as joined:
        joined.hosts[1].computing.close()
        prompt_id = joined.leader.queue(calling("part.json"))
        joined.hosts[1].computing.wait_for()
        joined.lose(1)
        state = joined.leader.wait_for(prompt_id)
    assert state.phase is Phase.FAILED
    assert "instance 1 was lost" in state.message


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.json": calling("a.json")}, "the workflow runs itself: a.json > a.json"),
        (
            {"a.json": calling("b.json"), "b.json": calling("a.json")},
            "the workflow runs itself: a.json > b.json > a.json",
        ),
        ({"a.json": {"no": "workflow"}}, "a.json is no ComfyUI workflow"),
        ({"a.json": prompt_of("1 Photographs count=1")}, "a.json: the workflow has no output node"),
        (
            {"a.json": prompt_of("1 Nothing\n2 Save images=1.0")},
            "a.json: node 1 (Nothing): there is no such node class here",
        ),
        (
            {"a.json": prompt_of("1 ClusterExecuteCurrentWorkflow trigger=1.0")},
            "cannot run inside of another workflow",
        ),
    ],
)
def test_files_that_cannot_run(files: dict[str, Any], message: str) -> None:
    with Instances(2, files=files) as joined:
        state = joined.failure(calling("a.json"))
        assert joined.hosts[1].started == []
    assert message in state.message


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"9.count": 1}, "names no node of part.json"),
        ({"1.amount": 1}, "has no input 'amount'"),
        ({"2.images": ["1", 0]}, "must be a value, not a link"),
    ],
)
def test_inputs_that_the_file_does_not_have(inputs: dict[str, Any], message: str) -> None:
    with Instances(2, files={"part.json": PART}) as joined:
        assert message in joined.failure(calling("part.json", **inputs)).message


def test_a_lost_instance_with_partial_results() -> None:
    with Instances(2, files={"part.json": PART}, on_lost=OnLost.PARTIAL) as joined:
        joined.hosts[1].computing.close()
        prompt_id = joined.leader.queue(calling("part.json"))
        joined.hosts[1].computing.wait_for()
        joined.lose(1)
        results = joined.results_of(prompt_id)
    assert len(saved_in_file(results, "8")[0]["samples"]) == 4


def test_recursion_by_way_of_a_link() -> None:
    outer = calling("part.json")
    outer["a"]["inputs"]["workflow_path"] = ["t", 0]
    outer["t"] = {"class_type": "Text", "inputs": {"text": "outer.json"}}
    with Instances(2, files={"outer.json": outer, "part.json": PART}) as joined:
        state = joined.failure(calling("outer.json"))
    assert "the workflow runs itself: outer.json > outer.json" in state.message


def test_files_need_node_expansion() -> None:
    with Instances(2, files={"part.json": PART}) as joined:
        joined.leader.can_expand = False
        state = joined.failure(calling("part.json"))
        assert joined.hosts[1].started == []
    assert "--cache-none" in state.message
