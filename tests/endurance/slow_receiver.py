"""One of two instances: a broadcast, in whose middle the receiver stops itself by SIGSTOP.

    python -m tests.endurance.slow_receiver INDEX INSTANCE_TIMEOUT PORT PORT

Prints one JSON line about the transfer. After a failed one it prints another line, once the two are
connected again; else it leaves when its input ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace

import torch

from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.config import ClusterConfig, Codec, SharedMemory
from comfy_cluster.errors import PeerLost, TransferCancelled
from comfy_cluster.runtime import build_cluster

SENDER, RECEIVER = 0, 1
SIZE = 256_000_000  # bytes; loopback takes some hundred milliseconds for it
STOP_AT = SIZE // 10  # bytes that have arrived
POLL_INTERVAL = 0.001  # seconds
MEMORY_BUDGET = 2 << 30  # bytes
WAIT = 60.0  # seconds; a bound for a broken build
KEY = CollectiveKey("slow receiver", "tensor")


def tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def new_tensor() -> torch.Tensor:
    return torch.arange(SIZE // 8)


def send(cluster: Cluster, tensor: torch.Tensor) -> bool:
    """Whether the receiver got it."""
    try:
        cluster.broadcast(KEY, tensor).result(WAIT)
    except PeerLost as error:
        tell(error=str(error))
        return False
    done_at = time.monotonic()
    peer = cluster.info().peers[0]
    # Each chunk goes out once; what is more than the tensor is headers, messages, and chunks again.
    tell(error=None, done_at=done_at, sent_over_size=peer.bytes_sent / SIZE)
    return True


def receive(cluster: Cluster, tensor: torch.Tensor) -> bool:
    """Whether it came."""
    arriving = cluster.broadcast(KEY)
    stopper = threading.Thread(target=stop_in_the_middle, args=(cluster,))
    stopper.start()
    try:
        got = arriving.result(WAIT)
    except (PeerLost, TransferCancelled) as error:
        tell(error=str(error))
        return False
    finally:
        stopper.join()
    tell(is_identical=torch.equal(got, tensor))
    return True


def stop_in_the_middle(cluster: Cluster) -> None:
    while cluster.info().peers[0].bytes_received < STOP_AT:
        time.sleep(POLL_INTERVAL)
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_until_connected_again(cluster: Cluster) -> None:
    while not cluster.info().peers[0].is_connected:
        time.sleep(POLL_INTERVAL)
    tell(is_connected_again=True)


def main() -> None:
    index, instance_timeout = int(sys.argv[1]), float(sys.argv[2])
    addresses = [("127.0.0.1", int(port)) for port in sys.argv[3:]]
    torch.set_num_threads(1)
    tensor = new_tensor()
    config = replace(
        ClusterConfig.static(index, addresses),
        instance_timeout=instance_timeout,
        shared_memory=SharedMemory.OFF,
        codec=Codec.RAW,  # what is compressed is over before the receiver could be stopped
        memory_budget=MEMORY_BUDGET,
    )
    with build_cluster(config) as cluster:
        cluster.wait_until_ready(WAIT)
        act = send if index == SENDER else receive
        with cluster.job(KEY.job_id):
            is_done = act(cluster, tensor)
        if not is_done:
            wait_until_connected_again(cluster)
        sys.stdin.read()


if __name__ == "__main__":
    main()
