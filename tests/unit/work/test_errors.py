"""What goes wrong on a follower is told where the user sees it, and nothing waits any longer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.host import Phase
from tests.unit.work.gates import WAIT, wait_until
from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of, region
from tests.unit.work.whole import queue_on_all

FAILING = """
    1 Photographs count=8
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 Fail images=3.0
    5 Blur images=4.0
    6 ClusterFanInImages images=5.0
    7 Save images=6.0
"""
MODELS = """
    1 EmptyLatents count=8
    2 Model name={model}
    3 ClusterFanOutLatent latent=1.0
    4 Sample latent=3.0 model=2.0
    5 ClusterFanInLatents latent=4.0
    6 Save images=5.0
"""
SIZES = """
    1 Photographs count=4
    2 ClusterFanOutImage images=1.0
    3 Grow images=2.0
    4 ClusterFanInImages images=3.0
    5 Save images=4.0
"""
NOT_ASKED_FOR = """
    1 Photographs count=2
    2 ClusterBroadcastTensor tensor=1.0
    3 ClusterListenTensorBroadcast
    4 Save images=2.0
    5 Save images=3.0
"""
WAITS_FOR_ITSELF = """
    1 Photographs count=2
    2 ClusterExecuteCurrentWorkflow trigger=1.0
    3 ClusterBroadcastTensor tensor=2.0
    4 Save images=3.0
"""
NOTHING_SENT = """
    1 Photographs count=4
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 Block images=3.0
    5 ClusterFanInImages images=4.0
    6 Save images=5.0
"""
SENT = """
    1 Photographs count=4
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 ClusterFanInImages images=3.0
    5 Save images=4.0
"""
DROPPED = """
    1 Photographs count=2
    2 Photographs count=4 seed=2
    3 ListOf first=1.0 second=2.0
    4 ClusterFanOutImage images=3.0
    5 JoinedList images=4.0
    6 ClusterFanInImages images=5.0
    7 Save images=6.0
"""


def test_an_error_names_the_instance_the_node_and_the_message() -> None:
    with Instances(3) as joined:
        joined.hosts[2].fails = True
        state = joined.failure(prompt_of(FAILING))
    assert state.failed_node == "node 6 (ClusterFanInImages)"
    assert state.message == "instance 2, node 4 (Fail): out of paint"


def test_the_other_followers_stop_then() -> None:
    with Instances(3) as joined:
        joined.hosts[1].computing.close()
        joined.hosts[2].fails = True
        joined.hosts[2].computing.close()
        prompt_id = joined.leader.queue(prompt_of(FAILING))
        joined.hosts[1].computing.wait_for()
        joined.hosts[2].computing.open()
        assert joined.leader.wait_for(prompt_id).phase is Phase.FAILED
        stopped = joined.hosts[1].wait_for(joined.hosts[1].started[0])
    assert stopped.phase is Phase.INTERRUPTED


def test_an_error_on_the_leader_stops_the_followers() -> None:
    with Instances(3) as joined:
        joined.leader.fails = True
        for host in joined.hosts:
            host.computing.close()
        prompt_id = joined.leader.queue(prompt_of(FAILING))
        for host in joined.hosts:
            host.computing.wait_for()
        joined.leader.computing.open()
        assert "out of paint" in joined.leader.wait_for(prompt_id).message
        states = [host.wait_for(host.started[0]) for host in joined.hosts[1:]]
    assert [state.phase for state in states] == [Phase.INTERRUPTED] * 2


def test_a_node_class_that_one_instance_lacks() -> None:
    with Instances(4, lacks={2: ["Blur"]}) as joined:
        state = joined.failure(region())
        assert joined.hosts[2].started == []
        assert ("Blur", 2) not in joined.leader.last.computed
    assert state.failed_node == "node 2 (ClusterFanOutImage)"
    assert state.message.startswith("instance 2 lacks node class Blur (node 3 (Blur))")


def test_a_model_that_one_instance_lacks() -> None:
    with Instances(3, models={1: ["a"]}) as joined:
        assert same(
            joined.run(prompt_of(MODELS.format(model="a"))),
            single_run(prompt_of(MODELS.format(model="a"))),
        )
        state = joined.failure(prompt_of(MODELS.format(model="b")))
        assert len(joined.hosts[1].started) == 1
    assert state.message == "instance 1 lacks 'b', which node 2 (Model) wants as name"


def test_pictures_that_do_not_fit_together() -> None:
    with Instances(2) as joined:
        joined.hosts[1].fails = True
        state = joined.failure(prompt_of(SIZES))
    assert "instance 0 sent [2, 6, 6, 3] float32, instance 1 sent [2, 7, 6, 3]" in state.message


def test_list_items_that_were_lost_on_the_way() -> None:
    with Instances(2) as joined:
        state = joined.failure(prompt_of(DROPPED))
    assert "results for the 2 batches that it got" in state.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1 Photographs count=4\n2 ClusterFanOutImage images=1.0\n3 Save images=2.0",
            "node 2 (ClusterFanOutImage) leads to no ClusterFanIn or ClusterGather node",
        ),
        (
            "1 Photographs count=4\n2 ClusterFanInImages images=1.0\n3 Save images=2.0",
            "node 2 (ClusterFanInImages) comes after no ClusterFanOut node",
        ),
    ],
)
def test_a_workflow_that_cannot_run_in_regions(text: str, message: str) -> None:
    with Instances(2) as joined:
        state = joined.failure(prompt_of(text))
        assert joined.hosts[1].started == []
    assert state.message.startswith(message)
    assert single_run(prompt_of(text))  # on one instance it runs as it is


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_follower_that_ends_without_a_result(is_whole: bool) -> None:
    prompt = prompt_of(NOTHING_SENT)
    with Instances(2) as joined:
        joined.hosts[1].fails = True
        joined.hosts[1].computing.close()
        queue = partial(queue_on_all, joined) if is_whole else joined.leader.queue
        prompt_id = queue(prompt)
        joined.hosts[1].computing.wait_for()
        joined.shorten_grace(prompt_id)
        joined.hosts[1].computing.open()
        state = joined.leader.wait_for(prompt_id)
    assert state.phase is Phase.FAILED
    assert "instance 1" in state.message
    assert "ended" in state.message


def test_what_the_leader_comes_to_late_has_a_grace_of_its_own() -> None:
    """A follower's grace ends just when the leader begins to wait for what came long ago."""
    prompt = prompt_of(SENT)
    with Instances(2) as joined:
        for host in joined.hosts:
            host.computing.close()
        prompt_id = queue_on_all(joined, prompt)
        joined.hosts[0].computing.wait_for()
        run: Any = joined.works[0]._runs[prompt_id]
        ended: list[Callable[[], object]] = []
        run._grace.call_later = ended.append
        begin_to_wait = run._fail_with_this_run

        def begin_late(source: int, handle: Handle[Any]) -> None:
            begin_to_wait(source, handle)
            for end in ended:
                end()

        run._fail_with_this_run = begin_late
        (assignment,) = run._assignments
        joined.hosts[1].computing.open()
        assignment.finished.result(WAIT)
        wait_until(lambda: bool(ended), "the follower's grace")
        joined.hosts[0].computing.open()
        state = joined.leader.wait_for(prompt_id)
    assert state.phase is Phase.SUCCEEDED, state.message


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_leader_whose_share_is_blocked(is_whole: bool) -> None:
    prompt = prompt_of(NOTHING_SENT)
    with Instances(2) as joined:
        joined.leader.fails = True
        queue = partial(queue_on_all, joined) if is_whole else joined.leader.queue
        assert joined.results_of(queue(prompt)) == {}


def test_a_value_that_cannot_travel() -> None:
    text = """
        1 Photographs count=4
        2 ClusterFanOutImage images=1.0
        3 Model name=a
        4 ClusterBroadcastTensor tensor=3.0
        5 Encode images=2.0
        6 Sample latent=5.0 model=4.0
        7 ClusterFanInLatents latent=6.0
        8 Save images=7.0
    """
    with Instances(2) as joined:
        state = joined.failure(prompt_of(text))
    assert "models and conditioning are made on each instance" in state.message


def test_the_next_run_works() -> None:
    prompt = prompt_of(FAILING)
    with Instances(3) as joined:
        for _ in range(2):
            joined.hosts[1].fails = True
            joined.failure(prompt)
            joined.hosts[1].fails = False
            assert same(joined.run(prompt), single_run(prompt))


def test_followers_work_for_the_leader_while_they_wait_for_each_other() -> None:
    prompt = region()
    with Instances(3, is_connected=False) as joined:
        joined.connect((0, 1), (0, 2))  # the leader has all
        first = joined.run(prompt)
        assert [len(host.started) for host in joined.hosts] == [1, 1, 1]
        joined.connect((1, 2))
        second = joined.run(prompt)
        assert [len(host.started) for host in joined.hosts] == [2, 2, 2]
    assert same([first, second], [single_run(prompt)] * 2)


def test_waiting_for_instances_can_be_interrupted() -> None:
    with Instances(2, is_connected=False) as joined:
        prompt_id = joined.leader.queue(region())
        wait_until(lambda: bool(joined.leader.shown), "the leader waits")
        assert joined.leader.shown[-1].text == "Connected: 1/2 instances, waiting for others"
        joined.leader.interrupt()
        assert joined.leader.wait_for(prompt_id).phase is Phase.INTERRUPTED
        joined.connect()
        joined.run(region())


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_listener_to_a_broadcast_that_does_not_run(is_whole: bool) -> None:
    prompt = prompt_of(NOT_ASKED_FOR)
    with Instances(2) as joined:
        if is_whole:
            outputs = joined.works[0].queue_on_all(prompt, {}, outputs=["5"])
            outputs[2].result(WAIT)
            prompt_id = outputs[1]
        else:
            prompt_id = joined.leader.queue(prompt, outputs=["5"])
        state = joined.leader.wait_for(prompt_id)
    assert "the workflow has none" in state.message


def test_a_workflow_that_would_wait_for_itself_on_all() -> None:
    with Instances(2) as joined:
        state = joined.failure(prompt_of(WAITS_FOR_ITSELF))
        assert joined.hosts[1].started == []
    assert "which waits until the other instances are done" in state.message


def test_nothing_can_be_done_again_here_without_the_cache() -> None:
    with Instances(2) as joined:
        joined.leader.can_expand = False
        joined.hosts[1].computing.close()
        prompt_id = joined.leader.queue(prompt_of(FAILING))
        joined.hosts[1].computing.wait_for()
        joined.lose(1)
        state = joined.leader.wait_for(prompt_id)
    assert "instance 1 was lost" in state.message and "--cache-none" in state.message


def test_an_id_that_is_used_again() -> None:
    with Instances(2) as joined:
        for prompt in (region(3), region(5), region(3)):
            joined.leader.queue(prompt, prompt_id="mine")
            assert same(joined.results_of("mine"), single_run(prompt))
