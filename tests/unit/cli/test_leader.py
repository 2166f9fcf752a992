"""The leader waits for its followers, and says who is missing."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from comfy_cluster.cli.followers import Followers
from comfy_cluster.cli.instance import free_ports, instance_environ
from comfy_cluster.cli.leader import Leader
from comfy_cluster.cluster import Cluster
from comfy_cluster.config import ClusterConfig
from comfy_cluster.errors import DiscoveryError, PeerLost
from comfy_cluster.runtime import build_cluster

SILENT = "import sys; print('I connect to nobody', flush=True); sys.stdin.read()"
FAILING = "import sys; sys.exit('Error: no power')"


@pytest.fixture
def environs() -> list[dict[str, str]]:
    kept = {name: os.environ[name] for name in os.environ if "COMFY_CLUSTER" not in name}
    ports = free_ports(2)
    return [instance_environ(kept, index, ports=ports, cluster_id="demo-1") for index in range(2)]


@pytest.fixture
def cluster(environs: list[dict[str, str]]) -> Iterator[Cluster]:
    with build_cluster(ClusterConfig.from_env(environs[0])) as cluster:
        yield cluster


def start(environs: list[dict[str, str]], code: str) -> Followers:
    return Followers(environs[1:], command=[sys.executable, "-c", code])


def test_a_follower_that_does_not_connect_is_named(
    environs: list[dict[str, str]], cluster: Cluster
) -> None:
    connected_counts: list[int] = []
    with start(environs, SILENT) as followers:
        pause = threading.Event()
        while not followers.written_by(1).startswith("I connect"):
            followers.check()
            pause.wait(0.01)
        leader = Leader(cluster, followers)
        with pytest.raises(DiscoveryError) as raised:
            leader.wait_until_ready(connected_counts.append, timeout=0.0)
    assert "Only 1 of 2 instances are connected after 0 s; missing: instance 1." in str(
        raised.value
    )
    assert "The last lines of instance 1:\nI connect to nobody" in str(raised.value)
    assert set(connected_counts) == {1}


def test_a_follower_that_ends_before_it_connects_is_named(
    environs: list[dict[str, str]], cluster: Cluster
) -> None:
    with start(environs, FAILING) as followers:
        leader = Leader(cluster, followers)
        with pytest.raises(PeerLost, match=r"Instance 1 .* exit code 1 .*\n.*no power"):
            leader.wait_until_ready(lambda _: None, timeout=60.0)
