"""Rounds of all four collectives at once, with random tensors that every instance can work out.

What each instance sends is a function of (seed, round, instance), so that each can check alone that
it got the right bits. Used by the tests here; also a program: a cluster of processes, started with
the seed, the number of rounds, SHARED_MEMORY, and a port for each instance.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.config import ClusterConfig, SharedMemory
from comfy_cluster.runtime import build_cluster
from comfy_cluster.transport.handle import Handle

WAIT = 60.0  # seconds; a bound for a broken build, never waited for in a good one
DTYPES = (torch.float32, torch.uint8, torch.bfloat16, torch.int64, torch.bool)


def tensor_of(seed: int, round_index: int, name: str) -> torch.Tensor:
    """A random batch that is the same in every process: its dtype, its shape and its values."""
    rng = random.Random(f"{seed}/{round_index}")  # one shape and dtype a round: parts must fit
    dtype = rng.choice(DTYPES)
    shape = rng.choice([(8, 8, 3), (rng.randrange(1, 80), 64, 4), (rng.randrange(1, 40), 700)])
    rng = random.Random(f"{seed}/{round_index}/{name}")
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    values = torch.randint(0, 256, (rng.randrange(6), *shape), generator=generator)
    if dtype == torch.float32 and rng.random() < 0.5:
        return values.to(dtype) / 255.0  # an 8-bit image, if the shape is one
    return values.to(dtype)


def start_round(
    cluster: Cluster, *, seed: int, round_index: int, rng: random.Random
) -> list[tuple[str, Handle[list[torch.Tensor]], list[torch.Tensor]]]:
    """Starts all four collectives, in an order of this instance's own.

    Returns their names, handles, and what each must give.
    """
    index, count = cluster.instance_index, cluster.instance_count
    own = [tensor_of(seed, round_index, f"part {each}") for each in range(count)]
    whole = tensor_of(seed, round_index, "whole")
    slices = list(torch.tensor_split(whole, count))
    joined = torch.cat(own) if index == 0 else own[index]

    def key(name: str) -> CollectiveKey:
        return CollectiveKey(f"job {round_index}", name)

    def start(name: str) -> tuple[str, Handle[list[torch.Tensor]], list[torch.Tensor]]:
        if name == "broadcast":
            source = round_index % count
            handle = cluster.broadcast(key(name), whole if index == source else None, source=source)
            return name, handle.then(lambda tensor: [tensor]), [whole]
        if name == "fan-out":
            handle = cluster.fan_out(key(name), whole if index == 0 else None)
            return name, handle.then(lambda tensor: [tensor]), [slices[index]]
        if name == "fan-in":
            handle = cluster.fan_in(key(name), own[index])
            return name, handle.then(lambda tensor: [tensor]), [joined]
        return name, cluster.all_gather(key(name), own[index]), own

    names = ["broadcast", "fan-out", "fan-in", "all-gather"]
    return [start(name) for name in rng.sample(names, len(names))]


def finish_round(started: list[tuple[str, Handle[list[torch.Tensor]], list[torch.Tensor]]]) -> None:
    """Waits for all, and compares bit by bit."""
    for name, handle, wanted in started:
        for got, expected in zip(handle.result(WAIT), wanted, strict=True):
            same = got.dtype == expected.dtype and got.shape == expected.shape
            assert same and torch.equal(got, expected), f"{name}: {got.shape} {got.dtype}"


def resources(cluster: Cluster) -> dict[str, int]:
    """What this process holds: file descriptors, threads, resident KiB.

    Each segment of shared memory has a descriptor; how many there are depends on sizes and timing.
    Workers open a file for a moment: the smallest of several looks counts.
    """
    descriptors = []
    for _ in range(20):
        descriptors.append(len(os.listdir("/proc/self/fd")) - segment_count(cluster))
        time.sleep(0.01)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "descriptors": min(descriptors),
        # The codec's start when several tensors happen to wait at once; their number is bounded.
        "threads": sum("codec" not in thread.name for thread in threading.enumerate()),
        "resident_kib": int(status["VmRSS"].split()[0]),
    }


def segment_count(cluster: Cluster) -> int:
    return cluster.info().stats.get("shared_memory_segments", 0)


def run_instance(config: ClusterConfig, *, seed: int, round_count: int) -> dict[str, object]:
    """One instance's whole life: resources a quarter of the way in, and at the end."""
    rng = random.Random(f"{seed}/{config.instance_index}")
    with build_cluster(config) as cluster:
        cluster.wait_until_ready(WAIT)
        early = {}
        for round_index in range(round_count):
            with cluster.job(f"job {round_index}"):
                finish_round(start_round(cluster, seed=seed, round_index=round_index, rng=rng))
            if round_index == round_count // 2:
                early = resources(cluster)
        late = resources(cluster)
        # Nobody leaves while another one still waits for it.
        cluster.all_gather(CollectiveKey("goodbye", "1"), torch.zeros(1)).result(WAIT)
    return {"early": early, "late": late, "closed": resources(cluster)}


def main() -> int:
    """Forks a process for each instance: loading torch takes longer than most of what they do.

    Each prints one JSON line and ends as any program does.
    """
    seed, round_count = int(sys.argv[1]), int(sys.argv[2])
    shared_memory = SharedMemory(sys.argv[3])
    addresses = [("127.0.0.1", int(port)) for port in sys.argv[4:]]
    torch.set_num_threads(1)
    gc.freeze()  # else each looks through all of torch for garbage, which takes the longest
    children = []
    for index in range(len(addresses)):
        child = os.fork()
        if child == 0:
            config = replace(ClusterConfig.static(index, addresses), shared_memory=shared_memory)
            found = run_instance(config, seed=seed, round_count=round_count)
            sys.stdout.write(json.dumps(found) + "\n")  # at once: lines must not mix
            return 0
        children.append(child)
    return int(any([os.waitpid(child, 0)[1] for child in children]))


if __name__ == "__main__":
    sys.exit(main())
