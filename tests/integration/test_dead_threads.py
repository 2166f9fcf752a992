"""An instance of which a thread dies: whoever waits on it is told, with real transports."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from comfy_cluster.cluster import Cluster, InstanceState
from comfy_cluster.errors import TransferError
from comfy_cluster.runtime import build_cluster
from comfy_cluster.work.leading import Leading
from comfy_cluster.work.orders import Order, OrderKind
from comfy_cluster.work.run import new_prompt_id
from tests.integration.clusters import READY_TIMEOUT, configs, running_clusters

pytestmark = pytest.mark.integration


def kill_control_thread(cluster: Cluster) -> None:
    def fail(_: float) -> None:
        raise RuntimeError("a bug")

    transport: Any = cluster._transport
    transport._parts.control.post(fail)


def test_who_waits_for_the_others_is_told() -> None:
    with build_cluster(configs(2)[0]) as alone:
        ready = alone.ready
        kill_control_thread(alone)
        with pytest.raises(TransferError, match=r"transport of this instance failed: .*a bug"):
            ready.result(READY_TIMEOUT)
        assert alone.state is InstanceState.ERROR
        with pytest.raises(TransferError, match="a bug"):
            alone.wait_until_ready(0)


def test_who_begins_something_later_is_told() -> None:
    with running_clusters(2) as (leader, _):
        kill_control_thread(leader)
        assert isinstance(leader.ended.exception(READY_TIMEOUT), TransferError)
        with pytest.raises(TransferError, match="transport of this instance failed"):
            leader.wait_until_ready(0)
        with (
            pytest.raises(TransferError, match="transport of this instance failed"),
            leader.job("job"),
        ):
            pass


def test_a_leader_that_waits_for_its_followers_is_told() -> None:
    with running_clusters(2) as (leader, _):
        leading = Leading(leader)
        prompt = {"1": {"class_type": "Never", "inputs": {}}}
        order = Order("job", new_prompt_id(), OrderKind.WORKFLOW.value, prompt, (0, 1))
        assignment = leading.give(1, order)  # nobody listens to it there
        kill_control_thread(leader)
        error = assignment.finished.exception(READY_TIMEOUT)
        assert isinstance(error, TransferError)
        assert "the transport of this instance failed: RuntimeError('a bug')" in str(error)
        assert assignment.accepted.exception(READY_TIMEOUT) is error


@pytest.mark.parametrize("may_start", [True, False])
def test_a_listener_may_close_even_without_a_thread_to_close_on(
    monkeypatch: pytest.MonkeyPatch, may_start: bool
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "comfy-cluster-close":
            raise RuntimeError("can't start new thread")
        start(thread)

    with running_clusters(2) as (leader, follower):
        if not may_start:
            monkeypatch.setattr(threading.Thread, "start", refuse)
        transport: Any = leader._transport
        parts = transport._parts
        parts.control.post(lambda now: transport.close())
        assert isinstance(leader.ended.exception(READY_TIMEOUT), TransferError)
        parts.control._thread.join(READY_TIMEOUT)
        assert not parts.control._thread.is_alive()
        leader.close()
        assert follower.ended.done() is False
        monkeypatch.undo()
    if not may_start:
        transport._close(parts)  # what the thread would have done
