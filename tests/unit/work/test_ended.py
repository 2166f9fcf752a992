"""A leader that leaves its cluster, or whose transport fails: nothing waits for orders any more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from comfy_cluster.errors import ClusterError, TransferCancelled, TransferError
from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.host import Phase
from comfy_cluster.work.leading import Assignment, Leading
from comfy_cluster.work.orders import Order, OrderKind
from comfy_cluster.work.run import new_prompt_id
from tests.unit.cluster.fake_transport import FakeClusters
from tests.unit.work.gates import WAIT
from tests.unit.work.instances import Instances
from tests.unit.work.prompts import prompt_of, region

WHOLE = """
    1 Photographs count=2
    2 Wait images=1.0
    3 Save images=2.0
    4 ClusterExecuteCurrentWorkflow trigger=1.0
"""
REGION = """
    1 Photographs count=8
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 ClusterFanInImages images=3.0
    5 Save images=4.0
"""

End = Callable[[FakeClusters], object]


def close(joined: FakeClusters) -> None:
    joined.clusters[0].close()


def fail(joined: FakeClusters) -> None:
    joined.network.transports[0].fail(OSError("the socket is gone"))


endings = pytest.mark.parametrize(
    ("end", "error_type", "text"),
    [
        (close, TransferCancelled, "the cluster was closed on this instance"),
        (fail, TransferError, "the socket is gone"),
    ],
    ids=["closed", "failed"],
)


def order() -> Order:
    prompt = prompt_of("1 Photographs count=1\n2 Save images=1.0")
    return Order("j", new_prompt_id(), OrderKind.WORKFLOW.value, prompt, (0, 1))


def outcomes(assignment: Assignment) -> list[BaseException | None]:
    handles: list[Handle[None]] = [assignment.accepted, assignment.finished.then(lambda _: None)]
    return [each.exception(WAIT) for each in handles]


@endings
@pytest.mark.parametrize("is_accepted", [False, True])
def test_orders_end_with_the_cluster(
    end: End, error_type: type[ClusterError], text: str, is_accepted: bool
) -> None:
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        leading = Leading(joined.clusters[0])
        assignment = leading.give(1, order())
        if is_accepted:
            assignment.accepted.set_result(None)
        end(joined)
        accepted, finished = outcomes(assignment)
        assert type(finished) is error_type and text in str(finished)
        assert str(finished).startswith("job j on instance 1: ")
        assert accepted is (None if is_accepted else finished)
        assert leading._assignments == {}


@endings
def test_orders_that_come_later_end_at_once(
    end: End, error_type: type[ClusterError], text: str
) -> None:
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        leading = Leading(joined.clusters[0])
        end(joined)
        accepted, finished = outcomes(leading.give(1, order()))
        assert type(finished) is error_type and text in str(finished)
        assert accepted is finished
        assert leading._assignments == {}


def close_leader(joined: Instances) -> None:
    """It says goodbye."""
    assert joined.joined is not None
    close(joined.joined)
    joined.joined.network.lose(0, "left")


def test_who_queues_a_workflow_everywhere_is_told() -> None:
    with Instances(2) as joined:
        joined.hosts[1].validation.close()
        work = joined.works[0]
        _, _, queued = work.queue_on_all(order().prompt, {}, outputs=["2"])
        joined.hosts[1].validation.wait_for()
        close_leader(joined)
        with pytest.raises(TransferCancelled, match="the cluster was closed on this instance"):
            queued.result(WAIT)
        joined.hosts[1].validation.open()


@pytest.mark.parametrize("is_accepted", [False, True])
@pytest.mark.parametrize("prompt", [WHOLE, REGION], ids=["whole", "region"])
def test_nodes_that_wait_for_followers_fail(prompt: str, is_accepted: bool) -> None:
    with Instances(2) as joined:
        follower = joined.hosts[1]
        gate = follower.computing if is_accepted else follower.validation
        gate.close()
        prompt_id = joined.leader.queue(prompt_of(prompt))
        gate.wait_for()
        close_leader(joined)
        state = joined.leader.wait_for(prompt_id)
        assert state.phase is Phase.FAILED
        assert "the cluster was closed on this instance" in state.message
        gate.open()


def test_nothing_is_queued_where_the_others_never_were() -> None:
    with Instances(2, is_connected=False) as joined:
        assert joined.joined is not None
        close(joined.joined)
        with pytest.raises(TransferCancelled, match="the cluster was closed on this instance"):
            joined.works[0].queue_on_all(order().prompt, {}, outputs=["2"])
        state = joined.leader.run(region())
        assert state.phase is Phase.FAILED
        assert "the cluster was closed on this instance" in state.message
