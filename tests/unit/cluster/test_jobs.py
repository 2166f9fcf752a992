"""Jobs: what a lost peer, the end of a job and closing do to handles."""

from __future__ import annotations

import pytest

from comfy_cluster.cluster.jobs import Jobs
from comfy_cluster.errors import PeerLost, TransferCancelled
from comfy_cluster.transport.handle import Handle


def tracked(jobs: Jobs, job_id: str, *peers: int) -> Handle[int]:
    handle: Handle[int] = Handle(f"work of {job_id}")
    jobs.track(job_id, handle, peers=frozenset(peers))
    return handle


def test_only_what_needs_the_lost_peer_fails() -> None:
    jobs = Jobs()
    needs_it = [tracked(jobs, "a", 1, 2), tracked(jobs, "b", 2)]
    goes_on = [tracked(jobs, "a", 1), tracked(jobs, "a")]
    jobs.on_peer_lost(2, "silent for 3.0 s")
    for handle in needs_it:
        with pytest.raises(PeerLost, match="instance 2 was lost: silent") as info:
            handle.result(0)
        assert info.value.peer == 2
    assert not any(handle.done() for handle in goes_on)


def test_a_loss_counts_for_the_rest_of_the_job_and_for_no_later_job() -> None:
    jobs = Jobs()
    tracked(jobs, "a", 1)
    jobs.on_peer_lost(2, "left")
    jobs.on_peer_lost(2, "silent for 3.0 s")
    assert "lost: left" in str(tracked(jobs, "a", 2).exception(0))
    assert not tracked(jobs, "b", 2).done()
    jobs.end("a")
    assert not tracked(jobs, "a", 2).done()


def test_a_failing_handle_gives_up_its_work() -> None:
    jobs = Jobs()
    cancelled: list[bool] = []
    handle: Handle[int] = Handle(on_cancel=lambda: cancelled.append(True))
    jobs.track("a", handle, peers=frozenset({1}))
    jobs.on_peer_lost(1, "left")
    assert cancelled == [True]


def test_done_handles_are_forgotten() -> None:
    jobs = Jobs()
    handle = tracked(jobs, "a", 1)
    handle.set_result(1)
    jobs.on_peer_lost(1, "left")
    jobs.end("a")
    assert handle.result(0) == 1


def test_the_end_of_a_job_cancels_what_is_left_of_it() -> None:
    jobs = Jobs()
    handle, other = tracked(jobs, "a", 1), tracked(jobs, "b", 1)
    jobs.end("a")
    jobs.end("unknown")
    assert str(handle.exception(0)) == "work of a: job 'a' has ended"
    assert not other.done()


def test_closing_cancels_everything_also_what_comes_later() -> None:
    jobs = Jobs()
    handles = [tracked(jobs, "a", 1), tracked(jobs, "b")]
    jobs.close("closed")
    for handle in [*handles, tracked(jobs, "c", 2)]:
        assert isinstance(handle.exception(0), TransferCancelled)
