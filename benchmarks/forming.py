"""How long instances of one machine take to find each other, a process each.

    python -m benchmarks.forming
    python -m benchmarks.forming --instances 64 --mode static

Loads no torch. Times are from the start of the last process's discovery until all are connected to
all, and from the first one's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

from comfy_cluster.config import ClusterConfig, RegistrationMode, role_of
from comfy_cluster.protocol.events import PeerConnected, PeerLost, StrangerHeard
from comfy_cluster.runtime import build_discovery
from comfy_cluster.transport.transport import Transport

FIRST_PORT = 21_000  # below the range of outgoing connections
TIMEOUT = 60.0  # seconds


def join(config: ClusterConfig, parent: Connection) -> None:
    """Takes part; tells when it began and when it had all others, and ends when it is told to."""
    transport = Transport(config)
    discovery = build_discovery(config)
    connected: set[int] = set()

    def on_event(event: object) -> None:
        if isinstance(event, PeerConnected):
            connected.add(event.peer)
            discovery.on_peer_connected(event.peer)
            if len(connected) == config.instance_count - 1:
                parent.send(time.monotonic())
        elif isinstance(event, PeerLost):
            connected.discard(event.peer)
            discovery.on_peer_lost(event.peer)
        elif isinstance(event, StrangerHeard):
            discovery.on_heard(event.peer, event.address)

    transport.add_peer_listener(on_event)
    parent.recv()
    transport.start()
    parent.send(time.monotonic())
    discovery.start(transport.add_member, print)
    parent.recv()
    discovery.close()
    transport.close()


def configs(count: int, mode: RegistrationMode) -> list[ClusterConfig]:
    addresses = [("127.0.0.1", FIRST_PORT + index) for index in range(count)]
    if mode is RegistrationMode.STATIC:
        return [ClusterConfig.static(index, addresses) for index in range(count)]
    return [
        ClusterConfig(
            instance_count=count,
            instance_index=index,
            role=role_of(index),
            registration_mode=mode,
            broadcast_port=FIRST_PORT - 1,
            direct_listen_port=port,
            single_host=True,
            udp_broadcast=True,
        )
        for index, (_, port) in enumerate(addresses)
    ]


def measure(count: int, mode: RegistrationMode) -> dict[str, float]:
    """Seconds. The processes are there before the clock begins: loading Python is no discovery."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pipes, processes = [], []
    for config in configs(count, mode):
        ours, theirs = context.Pipe()
        process = context.Process(target=join, args=(config, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    try:
        for pipe in pipes:
            pipe.send("start")
        began = [_received(pipe) for pipe in pipes]
        done = max(_received(pipe) for pipe in pipes)
        for pipe in pipes:
            pipe.send("end")
        for process in processes:
            process.join(TIMEOUT)
    finally:
        for process in processes:
            process.kill()
    return {"from_first": done - min(began), "from_last": done - max(began)}


def _received(pipe: Connection) -> float:
    if not pipe.poll(TIMEOUT):
        raise TimeoutError(f"not connected after {TIMEOUT:g} s")
    return float(pipe.recv())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--instances", type=int, default=32)
    parser.add_argument("--mode", choices=["broadcast", "static"], default="broadcast")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for _ in range(arguments.rounds):
        found = measure(arguments.instances, RegistrationMode(arguments.mode))
        print(
            f"{arguments.instances} instances, {arguments.mode}: all connected to all "
            f"{found['from_first']:.2f} s after the first began, {found['from_last']:.2f} s after "
            "the last"
        )


if __name__ == "__main__":
    main()
