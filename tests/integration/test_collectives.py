"""Collectives over real sockets on 127.0.0.1: several clusters in this process, and processes."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from comfy_cluster import batches
from comfy_cluster.cluster import Cluster, CollectiveKey, InstanceState
from comfy_cluster.config import SharedMemory
from comfy_cluster.errors import PeerLost, TransferCancelled, TransferError
from comfy_cluster.runtime import build_cluster
from tests.integration.clusters import configs, free_ports, running_clusters
from tests.integration.mixed_collectives import finish_round, start_round
from tests.long import IS_LONG

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
WAIT = 60.0  # seconds; a bound for a broken build, never waited for in a good one
KEY = CollectiveKey("job", "1")


@pytest.fixture
def pair() -> Iterator[list[Cluster]]:
    with running_clusters(2) as clusters:
        yield clusters


@pytest.mark.parametrize("count", [2, 4])
def test_all_collectives_at_once_round_after_round(count: int, carrier: dict[str, Any]) -> None:
    rngs = [random.Random(f"orders of {index}") for index in range(count)]
    with running_clusters(count, **carrier) as clusters:
        for round_index in range(10):
            started = [
                start_round(cluster, seed=count, round_index=round_index, rng=rng)
                for cluster, rng in zip(clusters, rngs, strict=True)
            ]
            for each in started:
                finish_round(each)


def test_a_large_tensor_arrives_bit_for_bit(pair: list[Cluster]) -> None:
    generator = torch.Generator().manual_seed(4)
    tensor = torch.rand(3, 1000, 1000, 3, generator=generator)
    sent = pair[0].broadcast(KEY, tensor)
    assert torch.equal(pair[1].broadcast(KEY).result(WAIT), tensor)
    assert sent.result(WAIT) is tensor


def test_more_than_the_memory_budget_waits_its_turn() -> None:
    with running_clusters(2, memory_budget=1 << 20) as (leader, follower):
        tensors = [torch.full((600_000,), number, dtype=torch.uint8) for number in range(10)]
        keys = [CollectiveKey("job", str(number)) for number in range(10)]
        sent = [leader.broadcast(*each) for each in zip(keys, tensors, strict=True)]
        received = [follower.broadcast(key) for key in reversed(keys)]
        for handle, tensor in zip(reversed(received), tensors, strict=True):
            assert torch.equal(handle.result(WAIT), tensor)
        for each in sent:
            each.result(WAIT)


def test_info_of_real_instances(pair: list[Cluster]) -> None:
    sent = pair[0].broadcast(KEY, torch.zeros(1000))
    pair[1].broadcast(KEY).result(WAIT)
    sent.result(WAIT)
    info = pair[1].info()
    assert (info.connected_count, info.state) == (2, InstanceState.IDLE)
    assert [(peer.instance_index, peer.is_connected) for peer in info.peers] == [(0, True)]
    assert info.peers[0].bytes_received > 4000
    assert f"127.0.0.1:{pair[0].config.direct_listen_port}" in info.text()


def test_a_peer_that_leaves_is_named_by_everything_that_needs_it() -> None:
    with running_clusters(3) as clusters:
        leader, stays, leaves = clusters
        fan_in = leader.fan_in(KEY, torch.zeros(1))
        gathered = stays.all_gather(CollectiveKey("job", "2"), torch.zeros(1))
        without = leader.fan_in(CollectiveKey("job", "3"), torch.zeros(1), sources=[0, 1])
        leaves.close()
        for handle in (fan_in, gathered):
            error = handle.exception(WAIT)
            assert isinstance(error, PeerLost) and error.peer == 2
            assert "instance 2" in str(error)
        stays.fan_in(CollectiveKey("job", "3"), torch.ones(1), sources=[0, 1])
        assert without.result(WAIT).tolist() == [0, 1]


def test_the_lost_instance_is_blamed_and_not_the_one_that_noticed_first() -> None:
    patient = {"heartbeat_interval": 5.0, "instance_timeout": WAIT}  # however busy the machine is
    with running_clusters(3, shared_memory=SharedMemory.OFF, **patient) as clusters:
        leader, survivor, lost = clusters
        handle = leader.all_gather(KEY, torch.zeros(1))
        survivor.all_gather(KEY, torch.zeros(20_000_000))
        lost.all_gather(KEY, torch.zeros(1))
        while sum(peer.bytes_received for peer in leader.info().peers) < 100_000:
            time.sleep(0.001)
        survivor.end_job("job")  # what it does when it knows of the loss
        lost.close()
        error = handle.exception(WAIT)
        assert isinstance(error, PeerLost) and error.peer == 2, error


def test_a_complete_part_outlives_its_sender(pair: list[Cluster]) -> None:
    leader, follower = pair
    with leader.job("job"):
        follower.fan_in(KEY, torch.ones(300_000)).result(WAIT)
        follower.close()
        while leader.info().connected_count > 1:
            time.sleep(0.001)
        assert len(leader.fan_in(KEY, torch.zeros(1)).result(WAIT)) == 300_001
        missing = leader.fan_in(CollectiveKey("job", "2"), torch.zeros(1))
        assert isinstance(missing.exception(WAIT), PeerLost)


def test_a_follower_restarted_before_the_first_collective_of_a_job_is_missed() -> None:
    leader_config, follower_config = configs(2)
    with build_cluster(leader_config) as leader:
        with build_cluster(follower_config):
            leader.wait_until_ready(WAIT)
            job = leader.job("job")
            job.__enter__()
        while leader.info().connected_count > 1:
            time.sleep(0.001)
        with build_cluster(follower_config) as restarted:
            restarted.wait_until_ready(WAIT)
            error = leader.fan_in(KEY, torch.zeros(1)).exception(WAIT)
            assert isinstance(error, PeerLost) and error.peer == 1
        job.__exit__(None, None, None)


def test_nobody_waits_for_an_instance_without_items() -> None:
    with running_clusters(3, min_instances=2) as (leader, follower, gone):
        gone.close()
        sent = leader.fan_out(KEY, torch.ones(2, 3))
        part = follower.fan_out(KEY).result(WAIT)
        own = sent.result(WAIT)
        sources = batches.instances_with_items(2, 3)
        follower.fan_in(KEY, part, sources=sources)
        assert leader.fan_in(KEY, own, sources=sources).result(WAIT).shape == (2, 3)


def test_a_peer_that_never_comes_ends_the_wait() -> None:
    config, _ = configs(2, min_instances=1, ack_timeout=0.1, max_retries=1)
    with build_cluster(config) as leader:
        received = leader.fan_in(KEY, torch.zeros(1))
        sent = leader.broadcast(CollectiveKey("job", "2"), torch.zeros(1))
        for handle in (received, sent):
            error = handle.exception(WAIT)
            assert isinstance(error, TransferError) and error.peer == 1
            assert "instance 1" in str(error)


def test_cancelling_one_side_ends_that_side(pair: list[Cluster]) -> None:
    leader, follower = pair
    cancelled = leader.fan_in(KEY, torch.zeros(1))
    cancelled.cancel()
    assert isinstance(cancelled.exception(0), TransferCancelled)
    again = CollectiveKey("job", "2")
    part = follower.fan_in(again, torch.ones(1))
    assert leader.fan_in(again, torch.zeros(1)).result(WAIT).tolist() == [0, 1]
    part.result(WAIT)


def test_closing_leaves_no_thread_and_no_descriptor() -> None:
    with running_clusters(2) as clusters:
        for cluster in clusters:
            cluster.broadcast(KEY, torch.zeros(100_000))
    del clusters, cluster
    before = held_resources()
    with running_clusters(3) as clusters:
        handles = [each.all_gather(KEY, torch.zeros(300_000)) for each in clusters]
        for handle in handles:
            handle.result(WAIT)
        waiting = clusters[0].fan_in(CollectiveKey("job", "2"), torch.zeros(1))
    assert isinstance(waiting.exception(0), TransferError)
    del clusters, handles, handle, waiting
    assert held_resources() == before


def held_resources() -> tuple[int, int]:
    """Threads and file descriptors; an engine that is garbage still holds its own."""
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(("count", "rounds"), [(4, 20), *([(2, 60), (8, 6)] if IS_LONG else [])])
def test_processes_run_all_collectives_without_a_leak(
    count: int, rounds: int, carrier: dict[str, Any]
) -> None:
    words = map(str, (7, rounds, carrier["shared_memory"], *free_ports(count)))
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.mixed_collectives", *words],
        cwd=ROOT,
        # Threads of a library that exist before the fork are missing after it.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=WAIT * 4,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == count
    for found in answers:
        assert found["late"]["descriptors"] <= found["early"]["descriptors"]
        assert found["late"]["threads"] <= found["early"]["threads"]
        assert found["late"]["resident_kib"] < found["early"]["resident_kib"] + (24 << 10)
        assert found["closed"]["threads"] == 1


def test_a_killed_process_is_named() -> None:
    leader_config, follower_config = configs(2, instance_timeout=0.6, heartbeat_interval=0.1)
    code = (
        "import sys, time, dataclasses\n"
        "from comfy_cluster.config import ClusterConfig\n"
        "from comfy_cluster.runtime import build_cluster\n"
        "addresses = [('127.0.0.1', int(port)) for port in sys.argv[1:]]\n"
        "with build_cluster(ClusterConfig.static(1, addresses)) as cluster:\n"
        "    cluster.wait_until_ready(60)\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    ports = [str(each.direct_listen_port) for each in (leader_config, follower_config)]
    with (
        subprocess.Popen(
            [sys.executable, "-c", code, *ports],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
        build_cluster(leader_config) as leader,
    ):
        leader.wait_until_ready(WAIT)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        handle = leader.fan_in(KEY, torch.zeros(1))
        sent = leader.broadcast(CollectiveKey("job", "2"), torch.zeros(50_000_000))
        process.send_signal(signal.SIGKILL)
        for each in (handle, sent):
            error = each.exception(WAIT)
            assert isinstance(error, PeerLost) and error.peer == 1
            assert "instance 1" in str(error)


def test_interpreter_exit_with_transfers_in_flight_is_clean() -> None:
    code = (
        "import torch, sys\n"
        "from comfy_cluster.cluster import CollectiveKey\n"
        "from comfy_cluster.config import ClusterConfig\n"
        "from comfy_cluster.runtime import build_cluster\n"
        "addresses = [('127.0.0.1', int(port)) for port in sys.argv[1:]]\n"
        "clusters = [build_cluster(ClusterConfig.static(i, addresses)) for i in range(2)]\n"
        "for cluster in clusters:\n"
        "    cluster.start()\n"
        "for cluster in clusters:\n"
        "    cluster.wait_until_ready(60)\n"
        "for number in range(4):\n"
        "    images = torch.randint(0, 256, (8, 512, 512, 3), dtype=torch.uint8)\n"
        "    clusters[0].broadcast(CollectiveKey('job', str(number)), images)\n"
        "    clusters[1].broadcast(CollectiveKey('job', str(number)))\n"
        "    clusters[0].broadcast(CollectiveKey('raw', str(number)), torch.zeros(10_000_000))\n"
        "    clusters[1].broadcast(CollectiveKey('raw', str(number)))\n"
    )
    ports = map(str, free_ports(2))
    done = subprocess.run(
        [sys.executable, "-c", code, *ports],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
