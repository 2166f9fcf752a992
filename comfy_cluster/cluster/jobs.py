"""The jobs under way: which handles belong to each, and which peers each has lost.

A job that has lost a peer never gets anything from it again, even when the peer is back: a
restarted instance knows nothing of the job. So what needs that peer fails, and for good, until the
job ends. Used by the collectives; sends and receives nothing itself.

How it works: two things are not believed at once, but after a short grace. A payload of a lost peer
may be here already, complete, and only waits to be verified: the layers below fail what is not.
And a peer that gives a transfer up is often not the cause: it has lost another one, and fails what
it does in this job; then this instance notices the same loss soon, and that is what is told.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from comfy_cluster.cluster.grace import Grace
from comfy_cluster.errors import PeerLost, TransferCancelled, TransferError
from comfy_cluster.transport.handle import Handle

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Need:
    """The peers without which a handle fails, and how it does."""

    peers: frozenset[int]
    fail: Callable[[Handle[Any], BaseException], object]


class _Job:
    def __init__(self) -> None:
        self.handles: dict[Handle[Any], _Need] = {}
        self.lost: dict[int, str] = {}  # peer and reason


class Jobs:
    """Fails the handles of jobs whose peers are lost, that end, or whose cluster closes.

    Thread-safe. A job is known from `begin` until `end`, which must be called for each.
    `grace_seconds`: how much later than another instance this one may notice that a peer is lost.
    """

    def __init__(self, *, grace_seconds: float) -> None:
        self._jobs: dict[str, _Job] = {}
        self._closed_because: str | None = None
        self._lock = threading.Lock()
        self._grace = Grace(grace_seconds)

    def begin(self, job_id: str) -> None:
        """From now on the job notices whom it loses, also before it has a handle."""
        with self._lock:
            self._jobs.setdefault(job_id, _Job())

    def track(self, job_id: str, handle: Handle[Any], *, peers: frozenset[int]) -> None:
        """Makes `handle` part of the job; it fails with PeerLost if one of `peers` is lost.

        It is cancelled where the job has ended meanwhile.
        """
        self._add(job_id, handle, _Need(peers, Handle.abandon))

    def track_arriving(self, job_id: str, handle: Handle[Any], *, source: int) -> None:
        """The same for a payload from `source`, which may still be handed over if it is here."""
        self._add(job_id, handle, _Need(frozenset({source}), self._fail_later))

    def explained(self, job_id: str, work: Handle[T], *, peers: frozenset[int]) -> Handle[T]:
        """`work`, made part of the job, with errors that open with its description.

        When the other side gives it up, and one of `peers` is lost before or soon after, then it
        fails with that PeerLost.
        """
        description = work.description
        # A loss from before the work began kept nobody from beginning it.
        suspected = peers - self._lost_by(job_id)

        def explain(error: BaseException) -> Handle[T]:
            told = _with_description(error, description)
            if not isinstance(error, TransferCancelled) or error.peer is None:
                return Handle.failed(told)
            held: Handle[T] = Handle(f"{description}, which gave it up")
            self._fail_later(held, told)
            self._add(job_id, held, _Need(suspected, Handle.abandon))
            return held

        explained = work.recover(explain)
        self.track(job_id, explained, peers=frozenset())
        return explained

    def on_peer_lost(self, peer: int, reason: str) -> None:
        """Fails what needs `peer`, now and later, in every job that is under way."""
        with self._lock:
            for job in self._jobs.values():
                job.lost.setdefault(peer, reason)
            needing = [
                (handle, need.fail)
                for job in self._jobs.values()
                for handle, need in job.handles.items()
                if peer in need.peers
            ]
        for handle, fail in needing:
            fail(handle, _peer_lost(handle, peer, reason))

    def end(self, job_id: str) -> None:
        """Cancels what is left of the job and forgets it; an unknown job is no error."""
        with self._lock:
            job = self._jobs.pop(job_id, None)
        for handle in list(job.handles) if job is not None else []:
            handle.cancel(_ended(job_id))

    def close(self, reason: str) -> None:
        """Cancels everything, and everything that comes later."""
        with self._lock:
            self._closed_because = reason
            handles = [each for job in self._jobs.values() for each in job.handles]
        for handle in handles:
            handle.cancel(reason)
        self._grace.close()

    def _add(self, job_id: str, handle: Handle[Any], need: _Need) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            ended_because = self._closed_because
            if job is None and ended_because is None:
                ended_because = _ended(job_id)
            lost: list[tuple[int, str]] = []
            if job is not None and ended_because is None:
                job.handles[handle] = need
                lost = sorted((each, job.lost[each]) for each in need.peers & job.lost.keys())
        if ended_because is not None:
            handle.cancel(ended_because)
            return
        handle.add_done_callback(lambda done: self._forget(job_id, done))
        for peer, reason in lost[:1]:
            need.fail(handle, _peer_lost(handle, peer, reason))

    def _forget(self, job_id: str, handle: Handle[Any]) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None:
                job.handles.pop(handle, None)

    def _lost_by(self, job_id: str) -> frozenset[int]:
        with self._lock:
            job = self._jobs.get(job_id)
            return frozenset() if job is None else frozenset(job.lost)

    def _fail_later(self, handle: Handle[Any], error: BaseException) -> None:
        # Weakly: the handle may be done soon, and hold a tensor that nobody needs any more.
        waiting = weakref.ref(handle)

        def fail() -> None:
            still_waiting = waiting()
            if still_waiting is not None:
                still_waiting.abandon(error)

        self._grace.call_later(fail)


def _ended(job_id: str) -> str:
    return f"job {job_id!r} has ended"


def _peer_lost(handle: Handle[Any], peer: int, reason: str) -> PeerLost:
    return PeerLost(f"{handle.description}: instance {peer} was lost: {reason}", peer=peer)


def _with_description(error: BaseException, description: str) -> BaseException:
    """The errors of transfers know the key only: the collective is named before it."""
    if not isinstance(error, TransferError) or str(error).startswith(description):
        return error
    described = type(error)(f"{description}: {error}", peer=error.peer)
    described.__cause__ = error
    return described
