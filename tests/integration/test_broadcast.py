"""Discovery by broadcast over real sockets of this machine: loopback, with SINGLE_HOST."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from comfy_cluster.cluster import Cluster, CollectiveKey, InstanceState
from comfy_cluster.config import ClusterConfig, RegistrationMode, Role
from comfy_cluster.errors import ConfigError, DiscoveryError
from comfy_cluster.runtime import build_cluster
from tests.integration.clusters import READY_TIMEOUT, free_ports

pytestmark = pytest.mark.integration

WAIT = 60.0  # seconds; a bound for a broken build


def config(index: int, count: int, *, broadcast_port: int, **settings: Any) -> ClusterConfig:
    values: dict[str, Any] = {
        "instance_count": count,
        "instance_index": index,
        "role": Role.FOLLOWER if index else Role.LEADER,
        "registration_mode": RegistrationMode.BROADCAST,
        "broadcast_port": broadcast_port,
        "direct_listen_port": free_ports(1)[0],
        "single_host": True,
        "udp_broadcast": True,
        "min_instances": count,
        **settings,
    }
    return ClusterConfig(**values)


@contextlib.contextmanager
def started(*configs: ClusterConfig) -> Iterator[list[Cluster]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(build_cluster(each)) for each in configs]


def test_instances_of_one_machine_find_each_other() -> None:
    (port,) = free_ports(1)
    with started(*(config(index, 4, broadcast_port=port) for index in range(4))) as clusters:
        for cluster in clusters:
            cluster.wait_until_ready(READY_TIMEOUT)
        key = CollectiveKey("job", "1")
        handles = [each.all_gather(key, torch.tensor([i])) for i, each in enumerate(clusters)]
        for handle in handles:
            assert torch.cat(handle.result(WAIT)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("silent", [0, 1])
def test_one_side_that_broadcasts_is_enough(silent: int) -> None:
    (port,) = free_ports(1)
    settings = [
        config(index, 2, broadcast_port=port, udp_broadcast=index != silent) for index in range(2)
    ]
    with started(*settings) as clusters:
        for cluster in clusters:
            cluster.wait_until_ready(READY_TIMEOUT)


def test_keys_that_differ_keep_them_apart_and_the_error_says_so() -> None:
    (port,) = free_ports(1)
    settings = [config(index, 2, broadcast_port=port, key=str(index) * 16) for index in range(2)]
    with started(*settings) as (leader, _):
        while "COMFY_CLUSTER_KEY is another one" not in missing_text(leader):
            threading.Event().wait(0.01)
        assert leader.info().connected_count == 1


def missing_text(cluster: Cluster) -> str:
    with pytest.raises(DiscoveryError) as info:
        cluster.wait_until_ready(0)
    return str(info.value)


def test_the_later_one_of_two_with_one_index_stops() -> None:
    (port,) = free_ports(1)
    with started(*(config(index, 2, broadcast_port=port) for index in range(2))) as (leader, _):
        leader.wait_until_ready(READY_TIMEOUT)
        with started(config(1, 2, broadcast_port=port)) as (late,):
            with pytest.raises(DiscoveryError, match="INSTANCE_INDEX=1 belongs to the instance"):
                late.wait_until_ready(READY_TIMEOUT)
            assert late.state is InstanceState.ERROR
        assert leader.info().connected_count == 2


def test_a_port_of_another_program_is_named() -> None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        cluster = build_cluster(config(0, 2, broadcast_port=port))
        with pytest.raises(ConfigError, match=f"port {port}, where instances announce"):
            cluster.start()
