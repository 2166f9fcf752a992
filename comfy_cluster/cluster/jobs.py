"""The jobs under way: which handles belong to each, and which peers each has lost.

A job that has lost a peer never gets anything from it again, even when the peer is back: a
restarted instance knows nothing of the job. So what needs that peer fails at once, and for good,
until the job ends. Used by the collectives; sends and receives nothing itself.
"""

from __future__ import annotations

import threading
from typing import Any

from comfy_cluster.errors import PeerLost
from comfy_cluster.transport.handle import Handle


class _Job:
    def __init__(self) -> None:
        self.handles: dict[Handle[Any], frozenset[int]] = {}  # with the peers that each needs
        self.lost: dict[int, str] = {}  # peer and reason


class Jobs:
    """Fails the handles of jobs whose peers are lost, that end, or whose cluster closes.

    Thread-safe. A job is known from its first handle until `end`, which must be called for each.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}
        self._closed_because: str | None = None
        self._lock = threading.Lock()

    def track(self, job_id: str, handle: Handle[Any], *, peers: frozenset[int]) -> None:
        """Makes `handle` part of the job; it fails with PeerLost if one of `peers` is lost."""
        with self._lock:
            job = self._jobs.setdefault(job_id, _Job())
            lost = sorted(peers & job.lost.keys())
            closed_because = self._closed_because
            if not lost and closed_because is None:
                job.handles[handle] = peers
        if closed_because is not None:
            handle.cancel(closed_because)
        elif lost:
            handle.abandon(_peer_lost(handle, lost[0], job.lost[lost[0]]))
        else:
            handle.add_done_callback(lambda done: self._forget(job_id, done))

    def on_peer_lost(self, peer: int, reason: str) -> None:
        """Fails what needs `peer`, now and later, in every job that is under way."""
        needing: list[Handle[Any]] = []
        with self._lock:
            for job in self._jobs.values():
                job.lost.setdefault(peer, reason)
                needing += [each for each, peers in job.handles.items() if peer in peers]
        for handle in needing:
            handle.abandon(_peer_lost(handle, peer, reason))

    def end(self, job_id: str) -> None:
        """Cancels what is left of the job and forgets it; an unknown job is no error."""
        with self._lock:
            job = self._jobs.pop(job_id, None)
        for handle in list(job.handles) if job is not None else []:
            handle.cancel(f"job {job_id!r} has ended")

    def close(self, reason: str) -> None:
        """Cancels everything, and everything that comes later."""
        with self._lock:
            self._closed_because = reason
            handles = [each for job in self._jobs.values() for each in job.handles]
        for handle in handles:
            handle.cancel(reason)

    def _forget(self, job_id: str, handle: Handle[Any]) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None:
                job.handles.pop(handle, None)


def _peer_lost(handle: Handle[Any], peer: int, reason: str) -> PeerLost:
    return PeerLost(f"{handle.description}: instance {peer} was lost: {reason}", peer=peer)
