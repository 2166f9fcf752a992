"""Large broadcasts and all-gathers over real sockets, where receivers send payloads on."""

from __future__ import annotations

import contextlib
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

from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.config import ClusterConfig, SharedMemory
from comfy_cluster.errors import PeerLost, TransferCancelled
from comfy_cluster.runtime import build_cluster
from comfy_cluster.wire import MessageType
from tests.integration.clusters import configs, running_clusters
from tests.integration.transports import Instances, bytes_of, key_of, payload_of, wait_until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
WAIT = 60.0  # seconds; a bound for a broken build, never waited for in a good one
BROADCAST = MessageType.DISTRIBUTE_BUFFER_BROADCAST
UDP: dict[str, Any] = {"shared_memory": SharedMemory.OFF}  # chains are for the others
QUICK: dict[str, Any] = {"instance_timeout": 0.6, "heartbeat_interval": 0.1}


def tensor_of(seed: int, count: int = 1_000_000) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [4, 8])
def test_broadcast_and_all_gather_give_everyone_the_same(count: int) -> None:
    tensors = [tensor_of(index) for index in range(count)]
    with running_clusters(count, **UDP) as clusters:
        gathered = [
            each.all_gather(CollectiveKey("job", "1"), tensors[each.instance_index])
            for each in clusters
        ]
        spread = [
            each.broadcast(
                CollectiveKey("job", "2"),
                tensors[3] if each.instance_index == 3 else None,
                source=3,
            )
            for each in clusters
        ]
        for handle in gathered:
            for found, expected in zip(handle.result(WAIT), tensors, strict=True):
                assert torch.equal(found, expected)
        for each in spread:
            assert torch.equal(each.result(WAIT), tensors[3])
        relayed = [cluster.info().stats["buffers_relayed"] for cluster in clusters]
    # Each of the count + 1 chains has count - 2 relays, unless one was given up on a busy machine.
    assert sum(relayed) > (count + 1) * (count - 2) // 2


def test_all_gather_of_eight_in_little_memory() -> None:
    tensors = [tensor_of(index, 200_000) for index in range(8)]
    with running_clusters(8, memory_budget=2 << 20, **UDP) as clusters:
        for node in range(3):
            key = CollectiveKey("job", str(node))
            handles = [each.all_gather(key, tensors[each.instance_index]) for each in clusters]
            for handle in handles:
                for found, expected in zip(handle.result(WAIT), tensors, strict=True):
                    assert torch.equal(found, expected)


def test_received_tensors_may_be_changed_in_place() -> None:
    """Each receiver writes over its tensor as soon as it has it; nobody else's changes."""
    tensor = tensor_of(1, 4_000_000)
    with running_clusters(5, **UDP) as clusters:
        for node in range(4):
            key = CollectiveKey("job", str(node))
            sent = clusters[0].broadcast(key, tensor)
            received = [
                each.broadcast(key).then(lambda found: (found.clone(), found.zero_())[0])
                for each in clusters[1:]
            ]
            for handle in received:
                assert torch.equal(handle.result(WAIT), tensor)
            sent.result(WAIT)


FOLLOWER = """
import sys, dataclasses
from comfy_cluster.config import ClusterConfig
from comfy_cluster.runtime import build_cluster
index, *ports = map(int, sys.argv[1:])
addresses = [('127.0.0.1', port) for port in ports]
config = ClusterConfig.static(index, addresses)
config = dataclasses.replace(config, instance_timeout=0.6, heartbeat_interval=0.1)
with build_cluster(config) as cluster:
    cluster.wait_until_ready(60)
    print('ready', flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def follower_process(config: ClusterConfig) -> Iterator[subprocess.Popen[str]]:
    ports = [str(address.port) for address in config.udp_hostnames]
    words = [sys.executable, "-c", FOLLOWER, str(config.instance_index), *ports]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def bytes_received(cluster: Cluster) -> int:
    return sum(peer.bytes_received for peer in cluster.info().peers)


@pytest.mark.parametrize("victim", [1, 2])
def test_a_follower_killed_in_mid_broadcast_is_missed_by_nobody_else(victim: int) -> None:
    tensor = tensor_of(7, 30_000_000)
    key = CollectiveKey("job", "1")
    settings = configs(4, **QUICK, **UDP)
    others = [index for index in range(4) if index != victim]
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(follower_process(settings[victim]))
        clusters = {index: stack.enter_context(build_cluster(settings[index])) for index in others}
        for cluster in clusters.values():
            cluster.wait_until_ready(WAIT)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        received = {index: clusters[index].broadcast(key) for index in others if index}
        sent = clusters[0].broadcast(key, tensor)
        while bytes_received(clusters[3]) < 5_000_000:  # 3 is behind the victim
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        for handle in received.values():
            assert torch.equal(handle.result(WAIT), tensor)
        error = sent.exception(WAIT)
        assert isinstance(error, PeerLost) and error.peer == victim
        assert clusters[0].info().stats["routes_broken"] > 0


@pytest.mark.parametrize("has_begun", [False, True])
def test_nobody_waits_long_for_a_successor_that_stands_still(has_begun: bool) -> None:
    """Instance 2 stops at once, or while it receives: instance 1 gives it up, or copies."""
    payload = payload_of(random.Random(5), 40_000_000)
    with Instances(3, **UDP) as (origin, first, second):
        key = key_of(0)
        received = first.transport.receive_buffer(key, peer=0)
        second.transport.receive_buffer(key, peer=0)
        parts = second.transport._parts
        assert parts is not None
        if not has_begun:
            parts.engine.stop_loops()
        handles = origin.transport.send_chain([1, 2], key, payload, message_type=BROADCAST)
        if has_begun:
            wait_until(lambda: second.transport.peers()[1].bytes_received > 200_000, "data")
            parts.engine.stop_loops()
        assert bytes(received.result(WAIT).data) == bytes_of(payload)
        assert not handles[2].done()
        handles[1].result(WAIT)
        assert isinstance(handles[2].exception(WAIT), PeerLost)


def test_a_cancelled_chain_leaves_nothing_behind() -> None:
    rng = random.Random(6)
    payload = payload_of(rng, 40_000_000)
    with Instances(4, **UDP) as instances:
        for number in range(3):
            key = key_of(0, number)
            received = [each.transport.receive_buffer(key, peer=0) for each in instances[1:]]
            handles = instances[0].transport.send_chain(
                [1, 2, 3], key, payload, message_type=BROADCAST
            )
            before = instances[3].transport.peers()[2].bytes_received
            wait_until(
                lambda before=before: (  # type: ignore[misc]
                    instances[3].transport.peers()[2].bytes_received > before + 500_000
                ),
                "data",
            )
            for handle in handles.values():
                handle.cancel()
            for claim in received:  # who had all of it already keeps it
                error = claim.exception(WAIT)
                assert isinstance(error, TransferCancelled) or (
                    error is None and bytes(claim.result().data) == bytes_of(payload)
                )
        again = payload_of(rng, 1_000_000)
        key = key_of(0, 9)
        received = [each.transport.receive_buffer(key, peer=0) for each in instances[1:]]
        handles = instances[0].transport.send_chain([1, 2, 3], key, again, message_type=BROADCAST)
        for claim in received:
            assert bytes(claim.result(WAIT).data) == bytes_of(again)
        for handle in handles.values():
            handle.result(WAIT)
        del received, claim
        for each in instances:
            parts = each.transport._parts
            assert parts is not None
            wait_until(lambda parts=parts: not len(parts.endpoint._incoming._store), "the end")  # type: ignore[misc]
            assert not len(parts.endpoint._relays) and not len(parts.endpoint._chains)


def test_a_payload_that_is_given_up_before_it_is_sent_leaves_nothing(rng: random.Random) -> None:
    with Instances(3, **UDP) as instances:
        parts = instances[0].transport._parts
        assert parts is not None
        began, may_go_on = threading.Event(), threading.Event()

        def hold_up(now: float) -> None:
            began.set()
            may_go_on.wait(WAIT)

        parts.control.post(hold_up)
        assert began.wait(WAIT)
        small = payload_of(rng, 1_000)  # so its digest is made at once, and it waits for the thread
        handles = instances[0].transport.send_chain(
            [1, 2], key_of(0, 1), small, message_type=BROADCAST
        )
        for handle in handles.values():
            handle.cancel()
        over = threading.Event()
        parts.control.post(lambda now: over.set())
        may_go_on.set()
        assert over.wait(WAIT)
        assert not len(parts.endpoint._chains)
        assert not parts.outgoing._buffers
