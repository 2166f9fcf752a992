"""Buffers of the whole core over a bad network: by key, once, within the memory budget."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest

from comfy_cluster.errors import CorruptPayload, TransferCancelled
from comfy_cluster.protocol import (
    BufferArrived,
    BufferFailed,
    BufferSent,
    IncomingFailed,
    PeerLost,
)
from tests.core_instance import CoreCluster, CoreInstance, endings, key_of, only_error
from tests.simnet import Link

FAST = Link(delay=0.002, rate=12_500_000.0)
SLOW = Link(delay=0.002, rate=1_250_000.0)
SMALL_BUDGET = {"memory_budget": 400_000}
INCOMING_BUDGET = 200_000  # half of it
LARGE = 160_000  # two of them do not fit the incoming budget


@pytest.mark.parametrize("seed", range(12))
def test_buffers_are_found_by_key_whatever_the_order(engine: ModuleType, seed: int) -> None:
    """Random sizes between three instances under loss; claims come before, after, and between."""
    rng = random.Random(seed)
    link = Link(
        delay=rng.choice([0.001, 0.02, 0.1]),
        jitter=rng.choice([0.0, 0.05]),
        loss=rng.choice([0.0, 0.02, 0.1, 0.2]),
        duplication=rng.choice([0.0, 0.1]),
    )
    cluster = CoreCluster(engine, count=3, link=link, seed=seed)
    cluster.connect()
    contents: dict[int, dict[str, bytes]] = {0: {}, 1: {}, 2: {}}
    sent = [0, 0, 0]
    for number in range(15):
        source, target = rng.sample(range(3), 2)
        name, content = f"n{number}", rng.randbytes(int(10 ** (5.2 * rng.random())) - 1)
        actions: list[Callable[[], object]] = [
            partial(cluster.send, source, target, name, content),
            partial(cluster.claim, target, name, source),
        ]
        rng.shuffle(actions)
        for action in actions:
            action()
            cluster.run_for(rng.choice([0.0, 0.0, 0.05]))
        contents[target][name] = content
        sent[source] += 1
    cluster.run_until(
        lambda: [len(endings(i)) for i in cluster.instances.values()] == sent, time_limit=120.0
    )
    cluster.run_for(5.0)
    for index, instance in cluster.instances.items():
        arrived = {key.node_id: content for key, content in instance.contents.items()}
        assert arrived == contents[index]
        assert not instance.seen(BufferFailed) and not instance.seen(IncomingFailed)
        assert not instance.seen(PeerLost)
        assert len(instance.seen(BufferSent)) == sent[index]


def test_ten_large_transfers_stay_within_the_budget(engine: ModuleType) -> None:
    """Ten times 400 MB, scaled: one after the other, each as it finds room."""
    cluster = CoreCluster(engine, link=SLOW, options=SMALL_BUDGET)
    cluster.connect()
    content = bytes(range(256)) * (LARGE // 256)
    for number in range(10):
        cluster.send(0, 1, f"n{number}", content)
        cluster.claim(1, f"n{number}", 0)
    cluster.run_until(lambda: len(cluster.instances[0].seen(BufferSent)) == 10, time_limit=30.0)
    assert cluster.instances[1].memory.peak <= INCOMING_BUDGET
    assert len(cluster.instances[1].contents) == 10


def test_memory_not_given_back_holds_the_next_transfer(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=SLOW, options=SMALL_BUDGET)
    receiver = cluster.instances[1]
    receiver.is_releasing = False
    cluster.connect()
    for name in "ab":
        cluster.send(0, 1, name, bytes(LARGE))
        cluster.claim(1, name, 0)
    cluster.run_for(60.0)
    assert len(receiver.contents) == 1
    assert not cluster.instances[0].seen(BufferFailed)  # it waits, however long that takes
    receiver.endpoint.release_buffer(receiver.seen(BufferArrived)[0].buffer_id, cluster.now)
    cluster.run_until(lambda: len(receiver.contents) == 2, time_limit=5.0)


def test_claimed_buffers_come_before_unclaimed_ones(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=SLOW, options=SMALL_BUDGET)
    cluster.connect()
    for number in range(8):
        cluster.send(0, 1, f"n{number}", bytes(60_000))
    cluster.run_for(0.02)
    cluster.claim(1, "n7", 0)
    cluster.run_until(lambda: len(cluster.instances[1].contents) == 8, time_limit=30.0)
    assert cluster.instances[1].arrival_order.index("n7") <= 2


def test_unclaimed_buffers_leave_half_of_the_memory_to_claimed_ones(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=SLOW, options=SMALL_BUDGET)
    receiver = cluster.instances[1]
    receiver.is_releasing = False
    cluster.connect()
    for number in range(10):
        cluster.send(0, 1, f"n{number}", bytes(30_000))
    cluster.run_for(10.0)
    assert 0 < receiver.memory.used <= INCOMING_BUDGET // 2
    cluster.send(0, 1, "wanted", bytes(90_000))
    cluster.claim(1, "wanted", 0)
    cluster.run_until(lambda: key_of("wanted", 0) in receiver.contents, time_limit=5.0)


@pytest.mark.parametrize("size", [LARGE, 500_000])
def test_two_instances_that_send_to_each_other_do_not_wait_for_ever(
    engine: ModuleType, size: int
) -> None:
    cluster = CoreCluster(engine, link=SLOW, options=SMALL_BUDGET)
    cluster.connect()
    content = bytes(size)
    for number in range(6):
        for source in (0, 1):
            cluster.send(source, 1 - source, f"n{number}", content)
    cluster.run_for(0.5)
    for number in range(6):
        for source in (0, 1):
            cluster.claim(1 - source, f"n{number}", source)
    cluster.run_until(
        lambda: all(len(i.seen(BufferSent)) == 6 for i in cluster.instances.values()),
        time_limit=60.0,
    )
    for instance in cluster.instances.values():
        assert instance.memory.peak <= max(INCOMING_BUDGET, size)


def test_damaged_buffer_is_sent_again_once(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=FAST)
    receiver = cluster.instances[1]
    receiver.rejections = 1
    cluster.connect()
    cluster.claim(1, "a", 0)
    cluster.send(0, 1, "a", b"x" * 100_000)
    cluster.run_until(lambda: bool(cluster.instances[0].seen(BufferSent)), time_limit=5.0)
    assert receiver.contents == {key_of("a", 0): b"x" * 100_000}
    assert len(receiver.seen(BufferArrived)) == 2
    assert not receiver.seen(IncomingFailed)


def test_buffer_damaged_twice_is_an_error_on_both_sides(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=FAST)
    sender, receiver = cluster.instances[0], cluster.instances[1]
    receiver.rejections = 2
    cluster.connect()
    cluster.claim(1, "a", 0)
    buffer_id = cluster.send(0, 1, "a", b"x" * 100_000)
    cluster.run_for(5.0)
    assert isinstance(only_error(sender.seen(BufferFailed)), CorruptPayload)
    assert isinstance(only_error(receiver.seen(IncomingFailed)), CorruptPayload)
    assert sender.seen(BufferFailed)[0].buffer_id == buffer_id
    assert len(receiver.seen(BufferArrived)) == 2
    assert not receiver.contents


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.05])
def test_sender_may_cancel_at_any_time(engine: ModuleType, delay: float) -> None:
    cluster = CoreCluster(engine, link=Link(delay=0.002, rate=1_000_000.0))
    cluster.connect()
    sender, receiver = cluster.instances[0], cluster.instances[1]
    cluster.claim(1, "a", 0)
    buffer_id = cluster.send(0, 1, "a", bytes(900_000))
    cluster.run_for(delay)
    assert sender.endpoint.cancel_buffer(buffer_id, cluster.now)
    cluster.run_for(3.0)
    assert isinstance(only_error(sender.seen(BufferFailed)), TransferCancelled)
    assert not receiver.contents
    if delay:
        assert isinstance(only_error(receiver.seen(IncomingFailed)), TransferCancelled)
    assert sender.engine.peer_stats(1)["bytes_in_flight"] == 0
    assert_quiet(cluster)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.05])
def test_receiver_may_end_the_job_at_any_time(engine: ModuleType, delay: float) -> None:
    cluster = CoreCluster(engine, link=Link(delay=0.002, rate=1_000_000.0))
    cluster.connect()
    sender, receiver = cluster.instances[0], cluster.instances[1]
    cluster.claim(1, "a", 0)
    cluster.send(0, 1, "a", bytes(900_000))
    cluster.send(0, 1, "b", bytes(9_000), job="another job")
    cluster.run_for(delay)
    receiver.endpoint.end_job("job", cluster.now)
    cluster.run_for(3.0)
    assert isinstance(only_error(sender.seen(BufferFailed)), TransferCancelled)
    assert isinstance(only_error(receiver.seen(IncomingFailed)), TransferCancelled)
    assert list(receiver.contents) == [key_of("b", 0, "another job")]
    assert_quiet(cluster)


def assert_quiet(cluster: CoreCluster) -> None:
    """Nothing but heartbeats: no chunk of a transfer that is over is sent."""
    chunks = [i.engine.peer_stats(1 - n)["chunks_sent"] for n, i in cluster.instances.items()]
    cluster.run_for(10.0)
    assert chunks == [
        i.engine.peer_stats(1 - n)["chunks_sent"] for n, i in cluster.instances.items()
    ]


def has_ended(instance: CoreInstance) -> bool:
    return bool(endings(instance))


def test_corrupting_network_never_delivers_a_wrong_byte(engine: ModuleType) -> None:
    """Where no checksum of UDP helps: the digest finds it; bits are right, or it is an error."""
    results: set[str] = set()
    for seed in range(10):
        link = Link(delay=0.005, corruption=0.01)
        cluster = CoreCluster(engine, link=link, seed=seed)
        cluster.connect()
        content = random.Random(seed).randbytes(60_000)
        cluster.claim(1, "a", 0)
        cluster.send(0, 1, "a", content)
        cluster.run_until(partial(has_ended, cluster.instances[0]), time_limit=60.0)
        results.update(*endings(cluster.instances[0]).values())
        assert list(cluster.instances[1].contents.values()) in ([content], [])
    assert "BufferSent" in results
