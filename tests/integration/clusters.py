"""Several real clusters in this process: real sockets on 127.0.0.1, one transport each."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from typing import Any

from comfy_cluster.cluster import Cluster
from comfy_cluster.config import ClusterConfig
from comfy_cluster.runtime import build_cluster

LOOPBACK = "127.0.0.1"
READY_TIMEOUT = 30.0  # seconds; a bound for a broken build, never waited for in a good one


def free_ports(count: int) -> list[int]:
    """UDP ports that nobody uses at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(count)
        ]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def configs(count: int, **settings: Any) -> list[ClusterConfig]:
    """Settings of every instance of a static cluster on free ports."""
    addresses = [(LOOPBACK, port) for port in free_ports(count)]
    return [
        dataclasses.replace(ClusterConfig.static(index, addresses), **settings)
        for index in range(count)
    ]


@contextlib.contextmanager
def running_clusters(count: int, **settings: Any) -> Iterator[list[Cluster]]:
    """Started clusters that are all connected; closed at the end."""
    with contextlib.ExitStack() as stack:
        clusters = [stack.enter_context(build_cluster(each)) for each in configs(count, **settings)]
        for cluster in clusters:
            cluster.wait_until_ready(READY_TIMEOUT)
        yield clusters
