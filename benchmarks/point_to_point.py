"""One tensor from process to process: this project beside torch.distributed gloo, in one run.

    python -m benchmarks.point_to_point --megabytes 101 --rounds 9

Two processes on loopback. Each round sends the same float32 tensor both ways of doing it, in turn,
and ends when the receiver has the tensor and has said so (with one element over gloo, for both).
Ours is measured whole: encode, digest, announce, chunks, digest again, decode. Shared memory is not
part of it; the codec is `raw`, because random floats do not compress.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from comfy_cluster import fastpath
from comfy_cluster.cli.instance import free_ports
from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.config import ClusterConfig
from comfy_cluster.runtime import build_cluster

CONNECT_TIMEOUT = 30.0  # seconds

Send = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=float, default=101.0, help="size of the tensor")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, of which the median counts")
    parser.add_argument("--json", action="store_true", help="one JSON line instead of text")
    options = parser.parse_args()
    ports = free_ports(2)
    size = int(options.megabytes * 1e6) // 4 * 4
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    follower = context.Process(target=_run, args=(1, ports, size, options.rounds, results))
    follower.start()
    try:
        _run(0, ports, size, options.rounds, results)
        follower.join()
    finally:
        follower.kill()
    _report(results.get(), size, as_json=options.json)


def _run(rank: int, ports: list[int], size: int, rounds: int, results: Any) -> None:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ["MASTER_PORT"] = str(ports[0])  # TCP: no clash with our UDP port
    dist.init_process_group("gloo", rank=rank, world_size=2)
    with _cluster(rank, ports) as cluster:
        tensor = torch.rand(size // 4, generator=torch.Generator().manual_seed(rank))
        ways = {"gloo": _gloo(rank, tensor), "comfy_cluster": _ours(cluster, tensor)}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):  # the first one warms up and does not count
            for name, send in ways.items():
                elapsed = _timed(rank, send, number)
                if number:
                    seconds[name].append(elapsed)
        if rank == 0:
            results.put(seconds)
        dist.barrier()
    dist.destroy_process_group()


@contextlib.contextmanager
def _cluster(rank: int, ports: list[int]) -> Iterator[Cluster]:
    config = ClusterConfig.static(rank, [("127.0.0.1", port) for port in ports])
    with build_cluster(config) as cluster:
        cluster.wait_until_ready(CONNECT_TIMEOUT)
        yield cluster


def _gloo(rank: int, tensor: torch.Tensor) -> Send:
    def send(number: int) -> object:
        if rank == 0:
            return dist.send(tensor, 1)
        target = torch.empty_like(tensor)
        return dist.recv(target, 0)

    return send


def _ours(cluster: Cluster, tensor: torch.Tensor) -> Send:
    def send(number: int) -> object:
        key = CollectiveKey("benchmark", str(number))
        return cluster.broadcast(key, tensor if cluster.is_leader else None).result()

    return send


def _timed(rank: int, send: Send, number: int) -> float:
    acknowledgement = torch.zeros(1)
    dist.barrier()
    start = time.perf_counter()
    send(number)
    if rank == 0:
        dist.recv(acknowledgement, 1)
    else:
        dist.send(acknowledgement, 0)
    return time.perf_counter() - start


def _report(seconds: dict[str, list[float]], size: int, *, as_json: bool) -> None:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["gloo"] / medians["comfy_cluster"]
    if as_json:
        row = {"bytes": size, "engine": fastpath.ENGINE_NAME, "seconds": medians, "ratio": ratio}
        print(json.dumps(row))
        return
    print(f"one float32 tensor of {size / 1e6:.0f} MB, {fastpath.ENGINE_NAME} engine")
    for name, median in medians.items():
        print(f"  {name:14} {median * 1e3:8.1f} ms  {size / median / 1e9:6.2f} GB/s")
    print(f"  ratio to gloo  {ratio:8.2f} x")


if __name__ == "__main__":
    main()
