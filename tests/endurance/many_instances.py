"""64 instances in a few processes: form a cluster, fan in, broadcast back, leave.

    python -m tests.endurance.many_instances PROCESSES PORT ...

As many instances as ports. The processes are forked after the imports, which take longer than all
the rest. Prints one JSON line for each process; ends with 1 if one of them failed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
import time
import traceback
from dataclasses import replace
from typing import Any

import torch

from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.config import ClusterConfig
from comfy_cluster.runtime import build_cluster

WAIT = 60.0  # seconds; a bound for a broken build, never waited for in a good one
JOB = "gather"
# Seconds. 64 instances are several hundred threads, and here they share a core or two.
INSTANCE_TIMEOUT = 30.0
MEMORY_BUDGET = 64 << 20  # bytes; nothing here comes near


def run_process(indices: range, ports: list[int]) -> dict[str, Any]:
    """The whole life of the instances `indices`; what it took."""
    threads_before = threading.active_count()
    started_at, cpu_at_start = time.monotonic(), time.process_time()
    with contextlib.ExitStack() as stack:
        clusters = [stack.enter_context(build_cluster(_config(each, ports))) for each in indices]
        for cluster in clusters:
            cluster.wait_until_ready(WAIT)
        ready_seconds, ready_cpu = time.monotonic() - started_at, time.process_time() - cpu_at_start
        hellos = sum(cluster.info().stats["hellos_sent"] for cluster in clusters)
        _gather_and_return(clusters, len(ports))
        stats = [cluster.info().stats for cluster in clusters]
    return {
        "instances": list(indices),
        "ready_seconds": ready_seconds,
        "ready_cpu_seconds": ready_cpu,
        "cpu_seconds": time.process_time() - cpu_at_start,
        "hellos_sent": hellos,
        "connections_made": sum(each["connections_made"] for each in stats),
        "buffers_failed": sum(each["buffers_failed"] for each in stats),
        "threads_left": threading.active_count() - threads_before,
    }


def _config(index: int, ports: list[int]) -> ClusterConfig:
    config = ClusterConfig.static(index, [("127.0.0.1", port) for port in ports])
    return replace(config, memory_budget=MEMORY_BUDGET, instance_timeout=INSTANCE_TIMEOUT)


def _gather_and_return(clusters: list[Cluster], count: int) -> None:
    joined = torch.cat([_part(each) for each in range(count)])
    parts = [
        cluster.fan_in(CollectiveKey(JOB, "fan-in"), _part(cluster.instance_index))
        for cluster in clusters
    ]
    returned = [
        cluster.broadcast(CollectiveKey(JOB, "back"))
        for cluster in clusters
        if not cluster.is_leader
    ]
    for cluster, part in zip(clusters, parts, strict=True):
        gathered = part.result(WAIT)
        if cluster.is_leader:
            assert torch.equal(gathered, joined)
            returned.append(cluster.broadcast(CollectiveKey(JOB, "back"), gathered))
    for each in returned:
        assert torch.equal(each.result(WAIT), joined)
    # Nobody leaves before all have everything: what is under way would fail.
    goodbyes = [
        cluster.fan_in(CollectiveKey(JOB, "goodbye"), torch.zeros(1)) for cluster in clusters
    ]
    for each in goodbyes:
        each.result(WAIT)


def _part(index: int) -> torch.Tensor:
    return torch.arange(index, index + 1000).reshape(1, 10, 100)


def main() -> int:
    process_count, ports = int(sys.argv[1]), [int(word) for word in sys.argv[2:]]
    torch.set_num_threads(1)
    share = -(-len(ports) // process_count)
    gc.freeze()  # else each looks through all of torch for garbage
    children = []
    for first in range(0, len(ports), share):
        child = os.fork()
        if child == 0:
            _run_child(range(first, min(first + share, len(ports))), ports)
        children.append(child)
    return int(any(os.waitpid(child, 0)[1] for child in children))


def _run_child(indices: range, ports: list[int]) -> None:
    """Does not return: what the parent has to do at its exit is not done here."""
    try:
        answer = json.dumps(run_process(indices, ports)) + "\n"
        os.write(1, answer.encode())  # at once: lines of several processes must not mix
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
