"""The leader's part of the demo: shares the images, filters its own slice, joins the results.

Runs in the command's own process, on its main thread. Prints nothing; progress goes to a callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from comfy_cluster import batches
from comfy_cluster.cli import job
from comfy_cluster.cli.followers import Followers
from comfy_cluster.cli.instance import traffic_of
from comfy_cluster.cli.measures import Interval, Measures, union_seconds
from comfy_cluster.cluster import Cluster
from comfy_cluster.errors import DiscoveryError, PeerLost, TransferTimeout
from comfy_cluster.transport.handle import Handle

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Takes an instance and how many images it has filtered; on any thread, so it must not block."""

POLL_INTERVAL = 0.1  # seconds; how soon a follower's end is noticed, and Ctrl+C on Windows
LEADER = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the cluster made of a batch."""

    filtered: torch.Tensor
    """float32 [B,H,W,3], in the order of the batch."""
    measures: tuple[Measures, ...]
    """One an instance."""
    seconds: float
    """Fan-out, filter and fan-in together."""


class Leader:
    """Runs one job on a cluster whose followers run `follower.run_job`."""

    def __init__(self, cluster: Cluster, followers: Followers) -> None:
        self._cluster = cluster
        self._followers = followers
        self._expected: list[Handle[torch.Tensor]] = []
        """Of each follower what it sends last: fails when the follower is lost."""

    def run(self, images: torch.Tensor, *, sleep_seconds: float, on_progress: Progress) -> Outcome:
        """`images` is float32 [B,H,W,3]. PeerLost names an instance that ended or is silent."""
        with self._cluster.job(job.JOB_ID):
            try:
                return self._run(images, sleep_seconds, on_progress)
            except PeerLost as error:
                raise self._followers.explained(error) from error

    def _run(self, images: torch.Tensor, sleep_seconds: float, on_progress: Progress) -> Outcome:
        arrivals = _Arrivals(self._cluster, len(images), on_progress=on_progress)
        self._expected = arrivals.measures
        settings = torch.tensor(sleep_seconds, dtype=torch.float64)
        self._wait(self._cluster.broadcast(job.START, settings))
        before, started_at = traffic_of(self._cluster), time.monotonic()
        own = self._wait(self._cluster.fan_out(job.FAN_OUT, images))
        fanned_out_at = time.monotonic()
        filtered = job.filter_slice(
            own,
            sleep_seconds=sleep_seconds,
            on_image=partial(on_progress, LEADER),
            sleep=self._sleep,
        )
        computed_at = time.monotonic()
        joined = self._wait(self._cluster.fan_in(job.FAN_IN, filtered))
        joined_at = time.monotonic()
        used = traffic_of(self._cluster) - before
        theirs = [self._wait(handle) for handle in arrivals.measures]
        intervals = [(started_at, fanned_out_at), *arrivals.intervals(joined_at)]
        own_measures = Measures(
            items=len(own),
            compute_seconds=computed_at - fanned_out_at,
            bytes_sent=used.bytes_sent,
            bytes_received=used.bytes_received,
            chunks_retransmitted=used.chunks_retransmitted,
            transfer_seconds=union_seconds(intervals) if theirs else 0.0,
        )
        others = [Measures.from_tensor(row) for row in theirs]
        return Outcome(joined, (own_measures, *others), joined_at - started_at)

    def wait_until_ready(self, on_connected: Callable[[int], None], *, timeout: float) -> None:
        """Until all are connected; `on_connected` is told how many are.

        DiscoveryError: some are not after `timeout` seconds. PeerLost: one has ended. Both name the
        instance, and tell what it wrote.
        """
        deadline = time.monotonic() + timeout
        while not self._cluster.ready.done():
            self._followers.check()
            on_connected(self._cluster.info().connected_count)
            if time.monotonic() > deadline:
                raise DiscoveryError(self._missing_text(timeout))
            time.sleep(POLL_INTERVAL)
        self._cluster.wait_until_ready(0.0)  # raises what has ended this instance

    def _missing_text(self, timeout: float) -> str:
        info = self._cluster.info()
        missing = [peer.instance_index for peer in info.peers if not peer.is_connected]
        written = "".join(
            f"\nThe last lines of instance {index}:\n{self._followers.written_by(index)}"
            for index in missing
        )
        return (
            f"Only {info.connected_count} of {info.instance_count} instances are connected after "
            f"{timeout:g} s; missing: {', '.join(f'instance {index}' for index in missing)}. "
            "Is this machine very busy, or does a firewall block UDP on the loopback address?"
            f"{written}"
        )

    def _wait(self, handle: Handle[T]) -> T:
        """The handle's result, unless a follower is lost before."""
        while not handle.done():
            self._check()
            try:
                return handle.result(POLL_INTERVAL)
            except TransferTimeout:
                continue
        return handle.result()

    def _sleep(self, seconds: float) -> None:
        """Sleeps, unless a follower is lost before."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, POLL_INTERVAL))

    def _check(self) -> None:
        """PeerLost if a follower has ended, or is silent."""
        self._followers.check()
        for handle in self._expected:
            if handle.done():
                handle.result()


class _Arrivals:
    """What the followers report while they work, and when it arrived here.

    Reports come in on the cluster's threads.
    """

    def __init__(self, cluster: Cluster, item_count: int, *, on_progress: Progress) -> None:
        self._sizes = batches.split_sizes(item_count, cluster.instance_count)
        self._on_progress = on_progress
        self._computed_at: dict[int, float] = {}
        self._done_at: dict[int, float] = {}
        self.measures: list[Handle[torch.Tensor]] = []
        for index in range(1, cluster.instance_count):
            for done_count in range(self._sizes[index] + 1):
                key = job.progress_key(index, done_count)
                report = cluster.fan_in(key, None, sources=[index])
                report.add_done_callback(partial(self._on_report, index, done_count))
            measures = cluster.fan_in(job.measures_key(index), None, sources=[index])
            measures.add_done_callback(partial(self._on_measures, index))
            self.measures.append(measures)

    def intervals(self, until: float) -> list[Interval]:
        """For each follower: from its last image's end to the arrival of its slice."""
        return [
            (self._computed_at.get(index, done_at), min(done_at, until))
            for index, done_at in self._done_at.items()
        ]

    def _on_report(self, index: int, done_count: int, report: Handle[torch.Tensor]) -> None:
        if report.exception() is not None:
            return
        self._on_progress(index, done_count)
        if done_count == self._sizes[index]:
            self._computed_at[index] = time.monotonic()

    def _on_measures(self, index: int, measures: Handle[torch.Tensor]) -> None:
        if measures.exception() is None:
            self._done_at[index] = time.monotonic()
