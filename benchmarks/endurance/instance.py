"""One instance of an endurance run, on a host of the lab.

    python -m benchmarks.endurance.instance INDEX HOST:PORT ... --seconds 60 --seed 1

Rounds of mixed transfers, each compared with what it must be, until instance 0 says that time is
up. Then it prints one JSON line, and leaves when its input ends: nobody may be missing while
another one is not done. A result that differs, or a transfer that fails, ends it with an error.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.endurance.transfers import WAIT, new_block, plans_of, start_round
from benchmarks.endurance.usage import Usage, pending
from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.config import ClusterConfig, SharedMemory
from comfy_cluster.runtime import build_cluster

MEMORY_BUDGET = 256 << 20  # bytes; the same on every machine, so that what is held compares
LOOKS = 2000  # at what is held, in a run of any length
TELL_INTERVAL = 30.0  # seconds
SETTLE_TIMEOUT = 10.0  # seconds; the last acknowledgements and releases take milliseconds


class Instance:
    def __init__(self, cluster: Cluster, *, seconds: float, seed: int, is_telling: bool) -> None:
        self._cluster = cluster
        self._seed = seed
        self._rng = random.Random(f"{seed}/{cluster.instance_index}")
        self._block = new_block(seed)
        self._usage = Usage()
        self._is_telling = is_telling
        self._seconds = seconds
        self._bytes_received = 0
        self._rounds = 0

    def run(self) -> dict[str, Any]:
        """The report. Errors of transfers and AssertionError pass through."""
        self._cluster.wait_until_ready(WAIT)
        started_at = time.monotonic()
        look_at = tell_at = started_at
        while self._goes_on(started_at):
            self._run_round()
            now = time.monotonic()
            if now >= look_at:
                look_at = now + self._seconds / LOOKS
                self._usage.look()
            if self._is_telling and now >= tell_at:
                tell_at = now + TELL_INTERVAL
                self._tell(now - started_at)
        return self._report()

    def _goes_on(self, started_at: float) -> bool:
        """Instance 0 decides, and all hear it: they must do the same rounds."""
        is_leader = self._cluster.is_leader
        is_time_left = time.monotonic() - started_at < self._seconds
        job = f"before round {self._rounds}"
        with self._cluster.job(job):
            own = torch.tensor([is_time_left]) if is_leader else None
            told = self._cluster.broadcast(CollectiveKey(job, "goes on"), own).result(WAIT)
            return bool(told.item())

    def _run_round(self) -> None:
        cluster, number = self._cluster, self._rounds
        count = cluster.instance_count
        plans = list(plans_of(self._block, seed=self._seed, number=number, instances=count))
        job = f"round {number}"
        with cluster.job(job):
            # One after the other is let go of, so that a round holds its results only once.
            started = list(start_round(cluster, job, plans, self._rng))
            while started:
                self._bytes_received += started.pop(0).finish()
        self._rounds += 1

    def _tell(self, seconds: float) -> None:
        received = f"{self._bytes_received / 1e9:.1f} GB of results"
        print(f"{seconds:.0f} s: {self._rounds} rounds, {received}", file=sys.stderr, flush=True)

    def _report(self) -> dict[str, Any]:
        cluster = self._cluster
        left = pending(cluster)
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while any(left.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
            left = pending(cluster)
        transport: Any = cluster._transport
        peers = transport.peers()
        chunks = sum(peer.chunks_sent for peer in peers)
        resent = sum(peer.chunks_retransmitted for peer in peers)
        stats = dict(cluster.info().stats)
        return {
            "instance": cluster.instance_index,
            "rounds": self._rounds,
            "bytes_received": self._bytes_received,
            "resent_share": resent / max(1, chunks),
            "connections_lost": stats["connections_lost"],
            "second_quarter": self._usage.quarter(1),
            "last_quarter": self._usage.quarter(3),
            "pending": left,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="One instance of an endurance run.")
    parser.add_argument("index", type=int)
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tell", action="store_true", help="progress on stderr")
    options = parser.parse_args()
    pairs = [text.rpartition(":") for text in options.addresses]
    config = replace(
        ClusterConfig.static(options.index, [(name, int(port)) for name, _, port in pairs]),
        shared_memory=SharedMemory.OFF,
        memory_budget=MEMORY_BUDGET,
    )
    torch.set_num_threads(1)
    with build_cluster(config) as cluster:
        report = Instance(
            cluster, seconds=options.seconds, seed=options.seed, is_telling=options.tell
        ).run()
        print(json.dumps(report), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
