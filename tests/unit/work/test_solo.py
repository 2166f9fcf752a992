"""A cluster of one: collectives return their input, and nothing else happens."""

from __future__ import annotations

import pytest
import torch

from comfy_cluster.errors import WorkflowError
from comfy_cluster.work.host import Phase
from tests.unit.work.fake_nodes import photographs
from tests.unit.work.gates import WAIT
from tests.unit.work.instances import Instances, same
from tests.unit.work.prompts import prompt_of, region

ALL = """
    1 Photographs count=3
    2 ClusterFanOutImage images=1.0
    3 ClusterFanInImages images=2.0
    4 ClusterGatherImages images=2.0
    5 ClusterBroadcastTensor tensor=3.0
    6 ClusterListenTensorBroadcast
    7 Save images=3.0
    8 Save images=4.0
    9 Save images=5.0
    10 Save images=6.0
"""


@pytest.mark.parametrize("seed", range(3))
def test_collectives_return_what_they_were_given(seed: int) -> None:
    with Instances(1, seed=seed) as alone:
        results = alone.run(prompt_of(ALL))
    assert all(same(each, [photographs(3)]) for each in results.values())
    assert len(results) == 4


def test_a_listener_without_a_broadcast() -> None:
    with Instances(1) as alone:
        state = alone.failure(prompt_of("1 ClusterListenTensorBroadcast\n2 Save images=1.0"))
    assert "the workflow has none" in state.message


def test_a_listener_that_its_broadcast_waits_for() -> None:
    text = "1 ClusterListenTensorBroadcast\n2 ClusterBroadcastTensor tensor=1.0\n3 Save images=2.0"
    with Instances(1) as alone:
        state = alone.failure(prompt_of(text))
    assert "which depends on it" in state.message


def test_waiting_for_a_broadcast_can_be_interrupted() -> None:
    text = """
        1 Photographs count=1
        2 Block images=1.0
        3 ClusterBroadcastTensor tensor=2.0
        4 ClusterListenTensorBroadcast
        5 Save images=4.0
        6 Wait images=1.0
        7 Save images=6.0
    """
    with Instances(1) as alone:
        alone.leader.fails = True
        prompt_id = alone.leader.queue(prompt_of(text))
        alone.leader.computing.wait_for()
        alone.leader.interrupt()
        assert alone.leader.wait_for(prompt_id).phase is Phase.INTERRUPTED


def test_queue_cluster_queues_it_here() -> None:
    with Instances(1) as alone:
        job_id, prompt_id, queued = alone.works[0].queue_on_all(region(2), {}, outputs=["5"])
        queued.result(WAIT)
        assert job_id == prompt_id
        results = alone.results_of(prompt_id)
        assert list(results) == ["5"]


def test_info() -> None:
    with Instances(1) as alone:
        text = alone.works[0].info_text()
        assert "Connected: 1/1 instances" in text
        assert (alone.works[0].instance_index, alone.works[0].instance_count) == (0, 1)
    with Instances(3) as joined:
        assert "Connected: 3/3 instances" in joined.works[1].info_text()
        assert (joined.works[1].instance_index, joined.works[1].instance_count) == (1, 3)


def test_a_file_runs_here() -> None:
    files = {"part.json": region(4)}
    prompt = prompt_of("1 ClusterExecuteWorkflow inputs={}\n2 Save images=1.0")
    prompt["1"]["inputs"]["workflow_path"] = "part.json"
    with Instances(1, files=files) as alone:
        results = alone.run(prompt)
        saved = [values for node_id, values in results.items() if node_id.endswith(".5")]
        with pytest.raises(NotImplementedError):
            alone.works[0].begin_file({})
    assert results["2"] == [{"0": {}}]
    assert [torch.is_tensor(each[0]) for each in saved] == [True]


def test_a_file_that_is_not_there() -> None:
    prompt = prompt_of("1 ClusterExecuteWorkflow inputs={}")
    prompt["1"]["inputs"]["workflow_path"] = "none.json"
    with Instances(1) as alone:
        state = alone.failure(prompt)
    assert "there is no workflow 'none.json'" in state.message


def test_what_cannot_run_is_not_queued() -> None:
    with Instances(1, lacks={0: ["Blur"]}) as alone, pytest.raises(WorkflowError, match="lacks"):
        alone.leader.queue(region())
