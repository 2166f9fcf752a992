"""Whole values between clusters: descriptions and tensors, in any order, whole or not at all."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import torch

from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.cluster.collectives import Kind
from comfy_cluster.config import ClusterConfig, ImagePrecision
from comfy_cluster.errors import (
    CorruptPayload,
    LocalProtocolError,
    PeerLost,
    TransferCancelled,
    UnsupportedTensor,
)
from tests.unit.cluster.fake_transport import FakeClusters

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one
KEY = CollectiveKey("job", "7")


def images(count: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 8, 8, 3), generator=generator).to(torch.float32) / 255.0


def latent() -> dict[str, Any]:
    return {
        "samples": torch.randn(3, 4, 5, 6),
        "noise_mask": torch.ones(1, 8, 8),
        "batch_index": [4, 5, 6],
        "type": "video",
        "sizes": (torch.arange(3), None, [1.5, True]),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other)) and type(one) is type(other)
    return bool(one == other)


def joined_job(joined: FakeClusters) -> contextlib.ExitStack:
    """The job on all instances, as long as the block runs."""
    joined.connect_all(WAIT)
    stack = contextlib.ExitStack()
    for cluster in joined.clusters:
        stack.enter_context(cluster.job("job"))
    return stack


@pytest.mark.parametrize(
    "value",
    [images(2), latent(), [images(2), images(3, seed=1)], [], None, {"plain": [1, "a"]}],
    ids=["tensor", "latent", "list", "nothing in it", "nothing", "no tensor"],
)
@pytest.mark.parametrize("is_asked_for_first", [False, True])
def test_a_value_arrives_whole(value: Any, is_asked_for_first: bool) -> None:
    with FakeClusters(3) as joined:
        leader, *followers = joined.clusters
        if is_asked_for_first:
            received = [each.receive_value(KEY, 0, kind=Kind.BROADCAST) for each in followers]
        sent = leader.send_value(KEY, value, [1, 2], kind=Kind.BROADCAST)
        sent.result(WAIT)
        if not is_asked_for_first:
            received = [each.receive_value(KEY, 0, kind=Kind.BROADCAST) for each in followers]
        assert all(same(each.result(WAIT), value) for each in received)


def test_values_of_several_nodes_and_sources_do_not_mix() -> None:
    made = {(node, source): images(2, seed=source) for node in ("7", "8") for source in (1, 2)}
    with FakeClusters(3) as joined:
        received = {
            (node, source): joined.clusters[0].receive_value(
                CollectiveKey("job", node), source, kind=Kind.FAN_IN
            )
            for node, source in made
        }
        for (node, source), value in reversed(made.items()):
            key = CollectiveKey("job", node)
            joined.clusters[source].send_value(key, [node, value], [0], kind=Kind.FAN_IN)
        for (node, source), handle in received.items():
            assert same(handle.result(WAIT), [node, made[node, source]])


def test_only_what_is_an_image_is_rounded() -> None:
    value = [torch.full((1, 4, 4, 3), 0.1), torch.full((1, 4, 4), 0.3)]
    with FakeClusters(2, image_precision=ImagePrecision.UINT8) as joined:
        leader, follower = joined.clusters
        for node, is_image in (("1", True), ("2", False)):
            key = CollectiveKey("job", node)
            leader.send_value(key, value, [1], kind=Kind.FAN_OUT, is_image=is_image).result(WAIT)
        rounded = follower.receive_value(CollectiveKey("job", "1"), 0, kind=Kind.FAN_OUT)
        exact = follower.receive_value(CollectiveKey("job", "2"), 0, kind=Kind.FAN_OUT)
        assert torch.allclose(rounded.result(WAIT)[0], torch.tensor(26 / 255))
        assert same(exact.result(WAIT), value)


def test_what_cannot_travel_fails_at_once_and_sends_nothing() -> None:
    with FakeClusters(2) as joined:
        sent = joined.clusters[0].send_value(KEY, {"model": object()}, [1], kind=Kind.BROADCAST)
        assert isinstance(sent.exception(0), UnsupportedTensor)
        assert joined.network.sent == []


def test_a_lost_peer_fails_both_sides() -> None:
    with FakeClusters(3) as joined:
        joined.network.hold()
        with joined_job(joined):
            sent = joined.clusters[0].send_value(KEY, latent(), [1, 2], kind=Kind.BROADCAST)
            received = joined.clusters[1].receive_value(KEY, 2, kind=Kind.FAN_IN)
            joined.network.lose(2)
            assert isinstance(received.exception(WAIT), PeerLost)
            joined.network.let_go()
            assert isinstance(sent.exception(WAIT), PeerLost)


def test_who_is_there_gets_all_of_it_when_another_is_lost() -> None:
    value = latent()
    with FakeClusters(3) as joined, joined_job(joined):
        joined.network.hold()
        received = joined.clusters[1].receive_value(KEY, 0, kind=Kind.BROADCAST)
        sent = joined.clusters[0].send_value(KEY, value, [1, 2], kind=Kind.BROADCAST)
        joined.network.lose(2)
        joined.network.let_go()
        assert same(received.result(WAIT), value)
        assert isinstance(sent.exception(WAIT), PeerLost)


def test_the_end_of_the_job_ends_what_is_waited_for() -> None:
    with FakeClusters(2) as joined:
        with joined_job(joined):
            received = joined.clusters[1].receive_value(KEY, 0, kind=Kind.BROADCAST)
        assert isinstance(received.exception(WAIT), TransferCancelled)


def test_a_job_that_ends_between_description_and_tensors_is_over() -> None:
    with FakeClusters(2) as joined:
        with joined_job(joined):
            joined.network.loses = lambda key: key.list_index > 0
            received = joined.clusters[1].receive_value(KEY, 0, kind=Kind.BROADCAST)
            joined.clusters[0].send_value(KEY, latent(), [1], kind=Kind.BROADCAST)
            assert joined.network.wait_for_lost(3, WAIT)
        assert isinstance(received.exception(WAIT), TransferCancelled)
        assert joined.clusters[1]._jobs._jobs == {}  # also where the tensors were asked for later


def test_closing_ends_a_value_whose_tensors_were_not_asked_for_yet() -> None:
    with FakeClusters(2) as joined, joined_job(joined):
        leader, follower = joined.clusters
        pool = follower._pool
        has_decoded, is_over = threading.Event(), threading.Event()
        may_go_on = threading.Semaphore(0)

        def occupy() -> None:
            may_go_on.acquire(timeout=WAIT)

        def occupy_then() -> None:
            has_decoded.set()
            is_over.wait(WAIT)

        for _ in range(pool._thread_count):
            pool.submit(occupy)
        arrived = threading.Event()
        joined.network.transports[1].after_arrival = arrived.set
        value = follower.receive_value(KEY, 0, kind=Kind.BROADCAST)
        leader.send_value(KEY, [torch.zeros(4)], [1], kind=Kind.BROADCAST)
        assert arrived.wait(WAIT)
        # The only free thread decodes the description, and is busy then: the next step is queued.
        pool.submit(occupy_then)
        may_go_on.release()
        assert has_decoded.wait(WAIT)
        closing = threading.Thread(target=follower.close)
        closing.start()
        error = value.exception(WAIT)
        is_over.set()
        may_go_on.release(pool._thread_count)
        closing.join()
    assert isinstance(error, TransferCancelled)
    assert str(error).startswith("broadcast (job job, node 7) from instance 0: ")


def test_a_cancelled_value_asks_for_no_tensors() -> None:
    with FakeClusters(2) as joined:
        received = joined.clusters[1].receive_value(KEY, 0, kind=Kind.BROADCAST)
        received.cancel("not needed")
        joined.clusters[1].end_job("job")
        assert joined.network.transports[1].claims == {}


@pytest.mark.parametrize(
    "description",
    [
        torch.zeros(4),
        torch.zeros((2, 2), dtype=torch.uint8),
        torch.frombuffer(bytearray(b"nonsense"), dtype=torch.uint8),
        torch.frombuffer(bytearray(b'["t",5]'), dtype=torch.uint8),
        torch.zeros(0, dtype=torch.uint8),
    ],
    ids=["floats", "a table", "no JSON", "tensors that are not there", "empty"],
)
def test_what_is_no_description_is_refused(description: torch.Tensor) -> None:
    with FakeClusters(2) as joined:
        received = joined.clusters[1].receive_value(KEY, 0, kind=Kind.BROADCAST)
        joined.clusters[0].broadcast(KEY, description)
        error = received.exception(WAIT)
    assert isinstance(error, CorruptPayload)


def test_the_text_of_an_error_names_the_collective() -> None:
    with FakeClusters(2) as joined, joined_job(joined):
        received = joined.clusters[1].receive_value(KEY, 0, kind=Kind.FAN_OUT)
        joined.network.lose(0)
        error = received.exception(WAIT)
    assert str(error).startswith("fan-out (job job, node 7) from instance 0: instance 0 was lost")


def test_a_cluster_of_one_has_nobody_to_send_to() -> None:
    with Cluster(ClusterConfig(memory_budget=1 << 28)) as alone:
        with pytest.raises(LocalProtocolError, match="nobody to send values to"):
            alone.send_value(KEY, 1, [], kind=Kind.BROADCAST)
        with pytest.raises(LocalProtocolError, match="nobody to send values to"):
            alone.receive_value(KEY, 0, kind=Kind.BROADCAST)
