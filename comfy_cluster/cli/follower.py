"""A follower of the demo, as a process of its own: `python -m comfy_cluster.cli.follower`.

Started by `followers.py` with its settings in the environment. It ends when its standard input is
closed: the leader does that at the end, and the operating system does it if the leader dies.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

import torch

from comfy_cluster.cli import job
from comfy_cluster.cli.instance import start_timeout, traffic_of
from comfy_cluster.cli.measures import Measures
from comfy_cluster.cluster import Cluster
from comfy_cluster.config import ClusterConfig
from comfy_cluster.errors import ClusterError
from comfy_cluster.runtime import build_cluster

ABANDONED_EXIT_CODE = 3


def main() -> None:
    """Takes part in one job. Exit code 1 and an error on standard error if it fails."""
    release = LeaderWatch()
    torch.set_num_threads(1)
    try:
        config = ClusterConfig.from_env(os.environ)
        logging.basicConfig(level=str(config.log_level), format="%(levelname)s %(message)s")
        with build_cluster(config) as cluster:
            run_job(cluster)
            release.wait()
    except ClusterError as error:
        sys.exit(f"Error: {error}")
    # At once: with torch loaded the interpreter takes a second to take itself apart.
    logging.shutdown()
    os._exit(0)


class LeaderWatch:
    """Ends this process at once when the leader is gone before the work is done."""

    def __init__(self) -> None:
        self._is_waiting = False
        self._is_released = threading.Event()
        threading.Thread(target=self._watch, name="leader-watch", daemon=True).start()

    def wait(self) -> None:
        """Waits until the leader needs this instance no more."""
        self._is_waiting = True
        self._is_released.wait()

    def _watch(self) -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        if not self._is_waiting:
            os._exit(ABANDONED_EXIT_CODE)
        self._is_released.set()


def run_job(cluster: Cluster) -> None:
    """Receives a slice, filters it, and sends it back, with what was measured."""
    index = cluster.instance_index
    cluster.wait_until_ready(start_timeout(cluster.instance_count))
    with cluster.job(job.JOB_ID):
        sleep_seconds = cluster.broadcast(job.START).result().item()
        before, started_at = traffic_of(cluster), time.monotonic()
        images = cluster.fan_out(job.FAN_OUT).result()
        received_at = time.monotonic()

        def report_progress(done_count: int) -> None:
            key = job.progress_key(index, done_count)
            done = torch.tensor([done_count])
            reports.append(cluster.fan_in(key, done, sources=[index]))

        reports = [cluster.fan_in(job.progress_key(index, 0), torch.tensor([0]), sources=[index])]
        filtered = job.filter_slice(images, sleep_seconds=sleep_seconds, on_image=report_progress)
        computed_at = time.monotonic()
        cluster.fan_in(job.FAN_IN, filtered).result()
        sent_at = time.monotonic()
        used = traffic_of(cluster) - before
        measures = Measures(
            items=len(images),
            compute_seconds=computed_at - received_at,
            bytes_sent=used.bytes_sent,
            bytes_received=used.bytes_received,
            chunks_retransmitted=used.chunks_retransmitted,
            transfer_seconds=(received_at - started_at) + (sent_at - computed_at),
        )
        cluster.fan_in(job.measures_key(index), measures.to_tensor(), sources=[index]).result()
        for report in reports:
            report.result()


if __name__ == "__main__":
    main()
