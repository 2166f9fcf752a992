"""Collectives that do not run on one side: behind blocked values, or because something failed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from comfy_cluster.work.host import PromptState
from comfy_cluster.workflows.prompt import Prompt
from tests.unit.work import fake_nodes
from tests.unit.work.instances import Instances
from tests.unit.work.prompts import prompt_of
from tests.unit.work.whole import queue_on_all

BROADCAST = """
    1 Photographs count=6
    2 Block images=1.0
    3 ClusterBroadcastTensor tensor=2.0
    4 Blur images=3.0
    5 Save images=4.0
"""
FAN_OUT = BROADCAST.replace("ClusterBroadcastTensor tensor", "ClusterFanOutImage images")
GATHER = """
    1 Photographs count=6
    2 ClusterFanOutImage images=1.0
    3 Block images=2.0
    4 ClusterGatherImages images=3.0
    5 Save images=4.0
"""
LISTEN = """
    1 Photographs count=2
    2 Block images=1.0
    3 ClusterBroadcastTensor tensor=2.0
    4 ClusterListenTensorBroadcast
    5 Save images=4.0
"""
SENT = """
    1 Photographs count=6
    2 Complex images=1.0
    3 ClusterBroadcastTensor tensor=2.0
    4 Save images=3.0
"""


class Complex(fake_nodes.FakeNode):
    """Makes what cannot be sent."""

    INPUTS = "images:IMAGE"

    def execute(self, unique_id: str, images: torch.Tensor) -> tuple[Any]:
        return (images.to(torch.complex64),)


def states_of(joined: Instances, prompt: Prompt) -> list[PromptState]:
    """How it ended on each instance."""
    first = joined.leader.wait_for(queue_on_all(joined, prompt))
    joined.wait_until_over()
    return [first, *(host.wait_for(host.started[0]) for host in joined.hosts[1:])]


@pytest.mark.parametrize("text", [BROADCAST, FAN_OUT])
def test_what_is_blocked_on_the_leader_is_blocked_on_followers(text: str) -> None:
    with Instances(3) as joined:
        joined.leader.fails = True
        states = states_of(joined, prompt_of(text))
        saved = [host.last.saved for host in joined.hosts]
    assert [state.phase.value for state in states] == ["succeeded"] * 3
    assert saved == [{}] * 3


def test_a_gather_without_the_leader_s_part_says_so() -> None:
    with Instances(3) as joined:
        joined.leader.fails = True
        state = states_of(joined, prompt_of(GATHER))[0]
    assert "node 4 (ClusterGatherImages) did not run on instance 0" in state.message


@pytest.mark.parametrize("instances", [1, 2])
def test_a_listener_to_a_broadcast_that_is_blocked_is_blocked_too(instances: int) -> None:
    with Instances(instances) as joined:
        joined.leader.fails = True
        assert joined.run(prompt_of(LISTEN)) == {}


def test_what_the_leader_cannot_send_fails_the_workflow_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(fake_nodes.FAKE_NODES, "Complex", Complex)
    with Instances(3) as joined:
        states = states_of(joined, prompt_of(SENT))
    assert "cannot encode dtype torch.complex64" in states[0].message
    assert [state.phase.value for state in states[1:]] == ["interrupted"] * 2
