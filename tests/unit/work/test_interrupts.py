"""The user interrupts, here or there: what belongs to the job stops, and nothing else does."""

from __future__ import annotations

import pytest

from comfy_cluster.work.host import Phase
from tests.unit.work.gates import wait_until
from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of, region

WAITING = """
    1 Photographs count=8
    2 ClusterFanOutImage images=1.0
    3 Wait images=2.0
    4 ClusterFanInImages images=3.0
    5 Save images=4.0
"""
OWN = """
    1 Photographs count=2
    2 Blur images=1.0
    3 Save images=2.0
"""


def test_an_interrupt_on_the_leader_stops_the_followers() -> None:
    prompt = prompt_of(WAITING)
    with Instances(3) as joined:
        for host in joined.hosts[1:]:
            host.computing.close()
        prompt_id = joined.leader.queue(prompt)
        for host in joined.hosts[1:]:
            host.computing.wait_for()
        joined.leader.interrupt()  # it waits for them in its fan-in
        assert joined.leader.wait_for(prompt_id).phase is Phase.INTERRUPTED
        for host in joined.hosts[1:]:
            assert host.wait_for(host.started[0]).phase is Phase.INTERRUPTED
            host.computing.open()
        assert same(joined.run(prompt), single_run(prompt))


def test_what_else_a_follower_has_in_its_queue_runs() -> None:
    with Instances(2) as joined:
        follower = joined.hosts[1]
        follower.computing.close()
        prompt_id = joined.leader.queue(prompt_of(WAITING))
        follower.computing.wait_for()
        own = follower.queue(prompt_of(OWN))
        joined.leader.interrupt()
        joined.leader.wait_for(prompt_id)
        assert follower.wait_for(own).phase is Phase.SUCCEEDED
        assert same(follower.records[own].saved, single_run(prompt_of(OWN)))


def test_what_a_follower_runs_for_itself_is_not_stopped() -> None:
    with Instances(2) as joined:
        follower = joined.hosts[1]
        follower.computing.close()
        own = follower.queue(
            prompt_of("1 Photographs count=2\n2 Wait images=1.0\n3 Save images=2.0")
        )
        follower.computing.wait_for()
        prompt_id = joined.leader.queue(prompt_of(WAITING))
        joined.leader.computing.wait_for()  # the order is in the follower's queue
        joined.leader.interrupt()
        assert joined.leader.wait_for(prompt_id).phase is Phase.INTERRUPTED
        wait_until(lambda: joined.orders_at(1) == 0, "the order is taken back")
        follower.computing.open()
        assert follower.wait_for(own).phase is Phase.SUCCEEDED
        assert follower.started == [own]


def test_orders_come_before_what_waits_in_a_followers_queue() -> None:
    with Instances(2) as joined:
        follower = joined.hosts[1]
        follower.computing.close()
        first = follower.queue(
            prompt_of("1 Photographs count=2\n2 Wait images=1.0\n3 Save images=2.0")
        )
        follower.computing.wait_for()
        second = follower.queue(prompt_of(OWN))
        prompt_id = joined.leader.queue(region())
        follower.wait_for_queue(2)
        follower.computing.open()
        joined.results_of(prompt_id)
        follower.wait_for(second)
        assert [follower.started[0], follower.started[2]] == [first, second]


def test_a_followers_user_interrupts_the_order() -> None:
    with Instances(2) as joined:
        joined.hosts[1].computing.close()
        prompt_id = joined.leader.queue(prompt_of(WAITING))
        joined.hosts[1].computing.wait_for()
        joined.hosts[1].interrupt()
        state = joined.leader.wait_for(prompt_id)
    assert state.phase is Phase.FAILED
    assert state.message == "instance 1, node 3 (Wait): the work was interrupted there"


def test_a_followers_user_deletes_the_order() -> None:
    with Instances(2) as joined:
        follower = joined.hosts[1]
        follower.computing.close()
        own = follower.queue(
            prompt_of("1 Photographs count=2\n2 Wait images=1.0\n3 Save images=2.0")
        )
        follower.computing.wait_for()
        prompt_id = joined.leader.queue(region())
        follower.delete_what_waits()
        state = joined.leader.wait_for(prompt_id)
        follower.computing.open()
        follower.wait_for(own)
    assert state.phase is Phase.FAILED
    assert "instance 1" in state.message


def test_interrupted_while_followers_validate() -> None:
    with Instances(3) as joined:
        joined.hosts[2].validation.close()
        prompt_id = joined.leader.queue(region())
        joined.hosts[2].validation.wait_for()
        joined.leader.interrupt()
        assert joined.leader.wait_for(prompt_id).phase is Phase.INTERRUPTED
        joined.hosts[2].validation.open()
        joined.wait_until_over()
        assert same(joined.run(region()), single_run(region()))


@pytest.mark.parametrize("times", [5])
def test_again_and_again(times: int) -> None:
    prompt = prompt_of(WAITING)
    expected = single_run(prompt)
    with Instances(3) as joined:
        for number in range(times):
            host = joined.hosts[number % 3]
            host.computing.close()
            seen = host.computing.passed_count
            prompt_id = joined.leader.queue(prompt)
            host.computing.wait_for(seen + 1)
            joined.leader.interrupt()
            assert joined.leader.wait_for(prompt_id).phase is Phase.INTERRUPTED
            host.computing.open()
            assert same(joined.run(prompt), expected)
