"""Messages about work that should not be: late, foreign, damaged. Nothing comes of them."""

from __future__ import annotations

import json

import pytest

from comfy_cluster.wire import MessageType
from comfy_cluster.work.host import Phase
from comfy_cluster.work.orders import Cancel, Order, OrderKind, Progress, Result, Trouble
from tests.unit.work.gates import WAIT
from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of, region

OWN = prompt_of("1 Photographs count=1\n2 Save images=1.0")
NEVER_JSON = prompt_of("""
    1 Photographs count=1
    2 Circle images=1.0
    3 ClusterExecuteCurrentWorkflow trigger=1.0
    4 Save images=3.0
""")
OF_WORK = [
    MessageType.DISTRIBUTE_PROMPT,
    MessageType.EXECUTE_WORKFLOW,
    MessageType.EXECUTION_PROGRESS,
    MessageType.EXECUTION_RESULT,
    MessageType.EXECUTION_ERROR,
    MessageType.EXECUTION_CANCEL,
]


def send(joined: Instances, source: int, target: int, kind: MessageType, payload: bytes) -> None:
    """Done when it has arrived."""
    joined.clusters[source].send_message(target, kind, payload).result(WAIT)
    assert joined.joined is not None
    assert joined.joined.network.flush(WAIT)


def order(job_id: str = "j", kind: OrderKind = OrderKind.WORKFLOW) -> Order:
    return Order(job_id, f"prompt of {job_id}", kind.value, OWN, (0, 1, 2))


@pytest.mark.parametrize("kind", OF_WORK)
@pytest.mark.parametrize(
    "payload", [b"", b"\xff", b"[]", b'{"job_id":5}', b'{"job_id":"j","more":1}']
)
def test_nonsense_does_nothing(kind: MessageType, payload: bytes) -> None:
    with Instances(2) as joined:
        send(joined, 0, 1, kind, payload)
        send(joined, 1, 0, kind, payload)
        joined.wait_until_over()
        assert not joined.leader.started and not joined.hosts[1].started
        assert same(joined.run(region()), single_run(region()))


def test_orders_come_from_the_leader_only() -> None:
    with Instances(3) as joined:
        send(joined, 1, 2, MessageType.EXECUTE_WORKFLOW, order().pack())
        send(joined, 1, 0, MessageType.EXECUTE_WORKFLOW, order().pack())
        joined.wait_until_over()
        assert not joined.leader.started and not joined.hosts[2].started


def test_an_order_is_done_once() -> None:
    with Instances(2) as joined:
        for _ in range(3):
            send(joined, 0, 1, MessageType.EXECUTE_WORKFLOW, order().pack())
        joined.wait_until_over()
        send(joined, 0, 1, MessageType.EXECUTE_WORKFLOW, order().pack())
        joined.hosts[1].settle()
        joined.wait_until_over()
        assert joined.hosts[1].started == ["prompt of j"]


def test_an_order_that_was_cancelled_before_it_came_is_not_done() -> None:
    with Instances(2) as joined:
        send(joined, 0, 1, MessageType.EXECUTION_CANCEL, Cancel("j", "not needed").pack())
        send(joined, 0, 1, MessageType.EXECUTE_WORKFLOW, order().pack())
        send(joined, 0, 1, MessageType.EXECUTE_WORKFLOW, order("k").pack())
        joined.hosts[1].wait_for("prompt of k")
        assert joined.hosts[1].started == ["prompt of k"]


def test_only_the_leader_cancels() -> None:
    with Instances(3) as joined:
        follower = joined.hosts[1]
        waiting = Order(
            "j", "prompt of j", OrderKind.WORKFLOW.value,
            prompt_of("1 Photographs count=1\n2 Wait images=1.0\n3 Save images=2.0"), (0, 1, 2),
        )  # fmt: skip
        follower.computing.close()
        send(joined, 0, 1, MessageType.EXECUTE_WORKFLOW, waiting.pack())
        follower.computing.wait_for()
        send(joined, 2, 1, MessageType.EXECUTION_CANCEL, Cancel("j").pack())
        follower.computing.open()
        assert follower.wait_for("prompt of j").phase is Phase.SUCCEEDED


def test_news_of_unknown_jobs_do_nothing() -> None:
    with Instances(2) as joined:
        send(joined, 1, 0, MessageType.EXECUTION_PROGRESS, Progress("x", "running", 0.5).pack())
        send(joined, 1, 0, MessageType.EXECUTION_RESULT, Result("x").pack())
        send(joined, 1, 0, MessageType.EXECUTION_ERROR, Trouble("x", "failed", "no").pack())
        send(joined, 0, 1, MessageType.EXECUTION_CANCEL, Cancel("x").pack())
        assert same(joined.run(region()), single_run(region()))


def test_news_of_a_job_from_who_has_no_part_in_it_do_nothing() -> None:
    with Instances(3) as joined:
        joined.hosts[1].validation.close()
        prompt_id = joined.leader.queue(region(2))  # of which instance 2 gets nothing
        joined.hosts[1].validation.wait_for()
        (job_id,) = {job for job, _ in joined.works[0]._leading._assignments}  # type: ignore[attr-defined]
        send(joined, 2, 0, MessageType.EXECUTION_ERROR, Trouble(job_id, "failed", "no").pack())
        joined.hosts[1].validation.open()
        assert same(joined.results_of(prompt_id), single_run(region(2)))


def test_an_order_that_cannot_be_understood_is_refused() -> None:
    with Instances(2) as joined:
        told: list[bytes] = []
        joined.clusters[0].add_message_listener(
            MessageType.EXECUTION_ERROR, lambda peer, payload: told.append(payload)
        )
        newer = {**json.loads(order().pack()), "more": 1}
        send(joined, 0, 1, MessageType.EXECUTE_WORKFLOW, json.dumps(newer).encode())
        assert joined.joined is not None and joined.joined.network.flush(WAIT)
        (trouble,) = map(Trouble.parse, told)
    assert (trouble.job_id, trouble.failure) == ("j", "refused")
    assert "Is it of the same version?" in trouble.message


def test_outputs_that_cannot_be_sent_are_told_as_such() -> None:
    with Instances(2) as joined:
        results = joined.run(NEVER_JSON)["4"]
        joined.wait_until_over()
    assert "cannot be sent" in results[0]["1"]["2"]["error"]


def test_a_check_queues_nothing() -> None:
    with Instances(2) as joined:
        told: list[bytes] = []
        joined.clusters[0].add_message_listener(
            MessageType.EXECUTION_RESULT, lambda peer, payload: told.append(payload)
        )
        payload = order("asked", OrderKind.CHECK).pack()
        send(joined, 0, 1, MessageType.EXECUTE_WORKFLOW, payload)
        joined.hosts[1].validation.wait_for()
        joined.wait_until_over()
        joined.hosts[1].settle()
        assert joined.joined is not None and joined.joined.network.flush(WAIT)
        assert [Result.parse(each).job_id for each in told] == ["asked"]
        assert joined.hosts[1].started == []
