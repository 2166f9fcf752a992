"""Jobs: what a lost peer, the end of a job and closing do to handles."""

from __future__ import annotations

import pytest

from comfy_cluster.cluster.jobs import Jobs
from comfy_cluster.errors import PeerLost, TransferCancelled
from comfy_cluster.transport.handle import Handle

WAIT = 10.0  # seconds; a bound for a broken build, never waited for in a good one


def new_jobs(*, grace_seconds: float = 600.0) -> Jobs:
    return Jobs(grace_seconds=grace_seconds)


def tracked(jobs: Jobs, job_id: str, *peers: int) -> Handle[int]:
    handle: Handle[int] = Handle(f"work of {job_id}")
    jobs.begin(job_id)
    jobs.track(job_id, handle, peers=frozenset(peers))
    return handle


def test_only_what_needs_the_lost_peer_fails() -> None:
    jobs = new_jobs()
    needs_it = [tracked(jobs, "a", 1, 2), tracked(jobs, "b", 2)]
    goes_on = [tracked(jobs, "a", 1), tracked(jobs, "a")]
    jobs.on_peer_lost(2, "silent for 3.0 s")
    for handle in needs_it:
        with pytest.raises(PeerLost, match="instance 2 was lost: silent") as info:
            handle.result(0)
        assert info.value.peer == 2
    assert not any(handle.done() for handle in goes_on)


def test_a_loss_counts_for_the_rest_of_the_job_and_for_no_later_job() -> None:
    jobs = new_jobs()
    tracked(jobs, "a", 1)
    jobs.on_peer_lost(2, "left")
    jobs.on_peer_lost(2, "silent for 3.0 s")
    assert "lost: left" in str(tracked(jobs, "a", 2).exception(0))
    assert not tracked(jobs, "b", 2).done()
    jobs.end("a")
    assert not tracked(jobs, "a", 2).done()


def test_a_failing_handle_gives_up_its_work() -> None:
    jobs = new_jobs()
    cancelled: list[bool] = []
    handle: Handle[int] = Handle(on_cancel=lambda: cancelled.append(True))
    jobs.begin("a")
    jobs.track("a", handle, peers=frozenset({1}))
    jobs.on_peer_lost(1, "left")
    assert cancelled == [True]


def test_done_handles_are_forgotten() -> None:
    jobs = new_jobs()
    handle = tracked(jobs, "a", 1)
    handle.set_result(1)
    jobs.on_peer_lost(1, "left")
    jobs.end("a")
    assert handle.result(0) == 1


def test_the_end_of_a_job_cancels_what_is_left_of_it() -> None:
    jobs = new_jobs()
    handle, other = tracked(jobs, "a", 1), tracked(jobs, "b", 1)
    jobs.end("a")
    jobs.end("unknown")
    assert str(handle.exception(0)) == "work of a: job 'a' has ended"
    assert not other.done()


def test_closing_cancels_everything_also_what_comes_later() -> None:
    jobs = new_jobs()
    handles = [tracked(jobs, "a", 1), tracked(jobs, "b")]
    jobs.close("closed")
    for handle in [*handles, tracked(jobs, "c", 2)]:
        assert isinstance(handle.exception(0), TransferCancelled)


def test_a_loss_before_the_first_handle_counts_once_the_job_has_begun() -> None:
    jobs = new_jobs()
    jobs.begin("a")
    jobs.on_peer_lost(2, "restarted")
    assert "instance 2 was lost: restarted" in str(tracked(jobs, "a", 2).exception(0))


@pytest.mark.parametrize("is_lost_before", [True, False])
def test_what_arrives_from_a_lost_peer_is_failed_after_a_grace_only(is_lost_before: bool) -> None:
    for grace_seconds in (600.0, 0.01):
        jobs = new_jobs(grace_seconds=grace_seconds)
        handle: Handle[int] = Handle("fan-in")
        jobs.begin("a")
        if is_lost_before:
            jobs.on_peer_lost(1, "left")
        jobs.track_arriving("a", handle, source=1)
        if not is_lost_before:
            jobs.on_peer_lost(1, "left")
        if grace_seconds > WAIT:
            assert handle.set_result(1)  # it was here, and only had to be verified
        else:
            error = handle.exception(WAIT)
            assert isinstance(error, PeerLost) and error.peer == 1
            assert str(error) == "fan-in: instance 1 was lost: left"
        jobs.close("closed")


def explained(jobs: Jobs) -> tuple[Handle[int], Handle[int]]:
    work: Handle[int] = Handle("fan-in from instance 1")
    jobs.begin("a")
    return work, jobs.explained("a", work, peers=frozenset({1, 2}))


GIVEN_UP = TransferCancelled("instance 1 gave up 7", peer=1)


@pytest.mark.parametrize("is_lost_before", [True, False])
def test_a_loss_is_told_in_place_of_the_cancel_that_it_made_a_peer_send(
    is_lost_before: bool,
) -> None:
    jobs = new_jobs()
    work, handle = explained(jobs)
    if is_lost_before:
        jobs.on_peer_lost(2, "silent for 3.0 s")
    work.set_exception(GIVEN_UP)
    if not is_lost_before:
        assert not handle.done()
        jobs.on_peer_lost(2, "silent for 3.0 s")
    error = handle.exception(0)
    assert isinstance(error, PeerLost) and error.peer == 2
    expected = "fan-in from instance 1, which gave it up: instance 2 was lost: silent for 3.0 s"
    assert str(error) == expected
    jobs.close("closed")


def test_a_cancel_without_a_loss_is_told_after_the_grace() -> None:
    jobs = new_jobs(grace_seconds=0.01)
    jobs.begin("a")
    jobs.on_peer_lost(2, "left")  # and the job went on without it
    work, handle = explained(jobs)
    work.set_exception(GIVEN_UP)
    error = handle.exception(WAIT)
    assert isinstance(error, TransferCancelled) and error.peer == 1
    assert str(error) == "fan-in from instance 1: instance 1 gave up 7"
    jobs.close("closed")


def test_other_errors_are_told_at_once_with_what_failed() -> None:
    jobs = new_jobs()
    work, handle = explained(jobs)
    work.set_exception(PeerLost("instance 1 was lost: left", peer=1))
    assert str(handle.exception(0)) == "fan-in from instance 1: instance 1 was lost: left"
    work, handle = explained(jobs)
    work.set_exception(ZeroDivisionError())
    assert isinstance(handle.exception(0), ZeroDivisionError)
    work, handle = explained(jobs)
    work.set_result(3)
    assert handle.result(0) == 3


def test_the_end_of_a_job_ends_the_grace() -> None:
    jobs = new_jobs()
    work, handle = explained(jobs)
    work.set_exception(GIVEN_UP)
    jobs.end("a")
    assert str(handle.exception(0)) == "fan-in from instance 1: job 'a' has ended"
    jobs.close("closed")


def test_what_comes_after_the_end_is_cancelled_and_makes_no_job() -> None:
    jobs = new_jobs()
    jobs.begin("a")
    jobs.end("a")
    handle: Handle[int] = Handle("late")
    jobs.track("a", handle, peers=frozenset())
    assert isinstance(handle.exception(0), TransferCancelled)
    jobs.on_peer_lost(1, "left")
    arriving: Handle[int] = Handle("late")
    jobs.track_arriving("a", arriving, source=1)
    assert isinstance(arriving.exception(0), TransferCancelled)
