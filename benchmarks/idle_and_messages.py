"""What an idle instance costs, and how long a message takes there and back.

    python -m benchmarks.idle_and_messages --instances 4 --seconds 10

Processes on loopback. A message's round trip ends when its acknowledgement is back. The share of a
core is what all threads of one process used while the cluster was connected and had nothing to do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from typing import Any

from comfy_cluster import fastpath
from comfy_cluster.cli.instance import LOOPBACK, free_ports
from comfy_cluster.config import ClusterConfig
from comfy_cluster.discovery import StaticDiscovery
from comfy_cluster.discovery.static import resolve_ipv4
from comfy_cluster.protocol.events import PeerConnected
from comfy_cluster.transport.transport import Transport
from comfy_cluster.wire import MessageType

MESSAGE_COUNT = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to be idle")
    parser.add_argument("--json", action="store_true", help="one JSON line instead of text")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ports, results, barrier = (
        free_ports(options.instances),
        context.SimpleQueue(),
        context.Barrier(options.instances),
    )
    processes = [
        context.Process(target=_run, args=(index, ports, options.seconds, barrier, results))
        for index in range(options.instances)
    ]
    for process in processes:
        process.start()
    rows = sorted((results.get() for _ in processes), key=lambda row: row["instance"])
    for process in processes:
        process.join()
    print(json.dumps(rows) if options.json else _text(rows))


def _run(index: int, ports: list[int], seconds: float, barrier: Any, results: Any) -> None:
    transport = Transport(ClusterConfig.static(index, [(LOOPBACK, port) for port in ports]))
    connected = multiprocessing.get_context("spawn").Semaphore(0)
    transport.add_peer_listener(
        lambda event: connected.release() if isinstance(event, PeerConnected) else None
    )
    transport.start()
    discovery = StaticDiscovery([(LOOPBACK, port) for port in ports], index, resolve=resolve_ipv4)
    discovery.start(transport.add_member)
    for _ in range(len(ports) - 1):
        connected.acquire()
    barrier.wait()
    row: dict[str, Any] = {"instance": index, "idle_share": _idle_share(seconds)}
    barrier.wait()
    if index == 0:
        row["round_trips"] = _round_trips(transport)
    barrier.wait()
    discovery.close()
    transport.close()
    results.put(row)


def _idle_share(seconds: float) -> float:
    start, used = time.perf_counter(), _cpu_seconds()
    time.sleep(seconds)
    return (_cpu_seconds() - used) / (time.perf_counter() - start)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _round_trips(transport: Transport) -> list[float]:
    seconds = []
    for _ in range(MESSAGE_COUNT):
        start = time.perf_counter()
        transport.send_message(1, MessageType.EXECUTION_PROGRESS, b"progress").result(30.0)
        seconds.append(time.perf_counter() - start)
    return seconds


def _text(rows: list[dict[str, Any]]) -> str:
    trips = sorted(rows[0]["round_trips"])
    shares = ", ".join(f"{100 * row['idle_share']:.2f} %" for row in rows)
    return (
        f"{len(rows)} instances, {fastpath.ENGINE_NAME} engine\n"
        f"  idle, of a core each     {shares}\n"
        f"  message there and back   median {statistics.median(trips) * 1e3:.3f} ms,"
        f" p99 {trips[int(len(trips) * 0.99)] * 1e3:.3f} ms"
    )


if __name__ == "__main__":
    main()
