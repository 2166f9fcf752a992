"""Messages over a bad network: exactly once, or an error in the stated time."""

from __future__ import annotations

import random
from collections import Counter
from types import ModuleType

import pytest

from comfy_cluster.errors import PeerLost, TransferTimeout
from comfy_cluster.protocol import MessageDelivered, MessageFailed, MessageReceived
from comfy_cluster.wire import MessageType
from tests.core_instance import CoreCluster, endings, only_error
from tests.simnet import Link


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2])
def test_each_message_is_delivered_exactly_once(engine: ModuleType, seed: int, loss: float) -> None:
    """With sizes on both sides of what one packet holds, in both directions."""
    link = Link(delay=0.02, jitter=0.05, loss=loss, duplication=0.1)
    cluster = CoreCluster(engine, link=link, seed=seed)
    cluster.connect()
    rng = random.Random(seed)
    sent: dict[int, list[bytes]] = {0: [], 1: []}
    for number in range(60):
        source = rng.randrange(2)
        size = rng.choice([0, 10, 300, 1100, 1140, 1168, 1200, 5000, 40_000])
        payload = number.to_bytes(2, "big") + rng.randbytes(size)
        sent[source].append(payload)
        cluster.say(source, 1 - source, payload)
        cluster.run_for(rng.choice([0.0, 0.01, 0.1]))
    ids = [len(payloads) for payloads in sent.values()]
    cluster.run_until(
        lambda: [len(endings(i)) for i in cluster.instances.values()] == ids, time_limit=60.0
    )
    cluster.run_for(10.0)
    for source, instance in cluster.instances.items():
        received = [event.payload for event in cluster.instances[1 - source].seen(MessageReceived)]
        assert Counter(received) == Counter(sent[source])
        assert not instance.seen(MessageFailed)
        assert all(len(ends) == 1 for ends in endings(instance).values())


def test_small_message_takes_one_round_trip(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=Link(delay=0.05))
    cluster.connect()
    started = cluster.now
    cluster.say(0, 1, b"hello")
    cluster.run_until(lambda: bool(cluster.instances[0].seen(MessageDelivered)), time_limit=1.0)
    assert cluster.now - started <= 0.1 + 0.02


def test_lost_message_is_sent_again_by_measured_time_not_by_ack_timeout(
    engine: ModuleType,
) -> None:
    """Once the round trip is known, a loss costs a few of them, not five seconds."""
    cluster = CoreCluster(engine, link=Link(delay=0.005))
    cluster.connect()
    for _ in range(10):
        cluster.say(0, 1, b"measure")
        cluster.run_for(0.1)
    cluster.network.set_links(Link(loss=1.0))
    cluster.say(0, 1, b"lost at first")
    cluster.run_for(0.02)
    cluster.network.set_links(Link(delay=0.005))
    count = len(cluster.instances[0].seen(MessageDelivered))
    cluster.run_until(
        lambda: len(cluster.instances[0].seen(MessageDelivered)) > count, time_limit=0.5
    )


@pytest.mark.parametrize(("ack_timeout", "max_retries"), [(0.5, 3), (2.0, 0), (5.0, 3)])
def test_unanswered_message_fails_after_the_stated_time(
    engine: ModuleType, ack_timeout: float, max_retries: int
) -> None:
    options = {
        "ack_timeout": ack_timeout,
        "max_retries": max_retries,
        "instance_timeout": 1000.0,
    }
    cluster = CoreCluster(engine, link=Link(delay=0.005), options=options)
    cluster.connect()
    cluster.network.set_links(Link(loss=1.0))
    started = cluster.now
    cluster.say(0, 1, b"nobody hears this")
    failed = cluster.instances[0]
    cluster.run_until(lambda: bool(failed.seen(MessageFailed)), time_limit=100.0)
    assert cluster.now - started == pytest.approx((1 + max_retries) * ack_timeout, abs=0.01)
    error = only_error(failed.seen(MessageFailed))
    assert isinstance(error, TransferTimeout)
    assert str(error).startswith("ACK timeout for message")


def test_message_to_an_instance_that_never_comes_fails_naming_it(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=3, link=Link(delay=0.005))
    cluster.kill(2)
    cluster.run_for(1.0)
    started = cluster.now
    cluster.say(0, 2, b"hello?")
    cluster.run_until(lambda: bool(cluster.instances[0].seen(MessageFailed)), time_limit=60.0)
    assert cluster.now - started == pytest.approx(20.0, abs=0.01)
    error = only_error(cluster.instances[0].seen(MessageFailed))
    assert isinstance(error, TransferTimeout | PeerLost)
    assert "2" in str(error)


def test_message_waits_for_an_instance_that_comes_in_time(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=Link(delay=0.005))
    cluster.kill(1)
    cluster.run_for(5.0)
    cluster.say(0, 1, b"welcome")
    cluster.run_for(5.0)
    cluster.boot(1)
    cluster.run_until(lambda: bool(cluster.instances[0].seen(MessageDelivered)), time_limit=3.0)
    assert [event.payload for event in cluster.instances[1].seen(MessageReceived)] == [b"welcome"]


def test_broadcast_reaches_every_instance_once(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=5, link=Link(delay=0.01, loss=0.1), seed=2)
    cluster.connect()
    ids = cluster.instances[0].endpoint.broadcast_message(
        MessageType.FREE_MEMORY, b"now", now=cluster.now
    )
    assert set(ids) == {1, 2, 3, 4}
    cluster.run_until(
        lambda: len(cluster.instances[0].seen(MessageDelivered)) == 4, time_limit=10.0
    )
    for peer in ids:
        assert len(cluster.instances[peer].seen(MessageReceived)) == 1
