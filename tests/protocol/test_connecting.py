"""Instances find each other over a bad network, and no forged HELLO takes a connection away."""

from __future__ import annotations

import random
from types import ModuleType

import pytest

from comfy_cluster.protocol import (
    BufferSent,
    MessageDelivered,
    PeerConnected,
    PeerLost,
    PeerRefused,
)
from tests.core_instance import CoreCluster, CoreInstance, address_of
from tests.packets import KIND_HELLO
from tests.simnet import Address, Link


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
def test_two_instances_connect(engine: ModuleType, seed: int, loss: float) -> None:
    link = Link(delay=0.03, jitter=0.05, loss=loss, duplication=0.2)
    cluster = CoreCluster(engine, link=link, seed=seed)
    cluster.connect(time_limit=1.0 if loss == 0.0 else 10.0)
    cluster.run_for(2.0)
    for instance in cluster.instances.values():
        connected, lost = instance.seen(PeerConnected), instance.seen(PeerLost)
        assert len(connected) == len(lost) + 1
        if loss == 0.0:
            assert not lost


def test_eight_instances_connect_all_to_all(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=8, link=Link(delay=0.001, loss=0.02))
    cluster.connect(time_limit=5.0)
    for index, instance in cluster.instances.items():
        peers = {event.peer for event in instance.seen(PeerConnected)}
        assert peers == set(range(8)) - {index}


def test_instance_that_starts_late_is_found_within_two_seconds(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=Link(delay=0.001))
    cluster.kill(1)
    cluster.run_for(300.0)
    cluster.boot(1)
    cluster.connect(time_limit=2.0)


def test_waiting_for_an_absent_instance_costs_little(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=Link(delay=0.001))
    cluster.kill(1)
    cluster.run_for(10.0)
    sent, wake_ups = cluster.network.counts.packets, cluster.network.wake_ups[address_of(0)]
    cluster.run_for(100.0)
    assert cluster.network.counts.packets - sent <= 130
    assert cluster.network.wake_ups[address_of(0)] - wake_ups <= 300


@pytest.mark.parametrize(
    "options", [{"cluster_id": "other"}, {"instance_count": 3}], ids=["cluster_id", "count"]
)
def test_instance_of_another_cluster_is_refused_once(
    engine: ModuleType, options: dict[str, object]
) -> None:
    cluster = CoreCluster(engine, link=Link(delay=0.001))
    cluster.boot(1, **options)
    cluster.run_for(20.0)
    assert not cluster.instances[0].endpoint.is_connected(1)
    assert len(cluster.instances[0].seen(PeerRefused)) == 1
    assert str(cluster.instances[0].seen(PeerRefused)[0].reason)


def hellos_of(instance: CoreInstance, seconds: float, now: float) -> list[bytes]:
    """What an instance says that hears nothing."""
    hellos: list[bytes] = []
    end = now + seconds
    while (timer := instance.next_timer()) is not None and timer <= end:
        now = max(now, timer)
        hellos += [p for a, p in instance.packets_to_send(now) if a == address_of(0)]
    assert hellos and all(packet[0] == KIND_HELLO for packet in hellos)
    return hellos


def test_forged_hellos_do_not_reset_a_connection(engine: ModuleType) -> None:
    """Somebody sends HELLOs of a new run of instance 1 in its name; it cannot hear the answers."""
    cluster = CoreCluster(engine, link=Link(delay=0.005, rate=2_000_000.0))
    cluster.connect()
    forged = hellos_of(cluster.new_instance(1), 30.0, cluster.now)
    content = random.Random(1).randbytes(900_000)
    cluster.send(0, 1, "a", content)
    cluster.send(1, 0, "b", content)
    for number in range(200):
        packet = forged[number % len(forged)]
        cluster.network.inject(packet, source=address_of(1), target=address_of(0))
        cluster.run_for(0.01)
    cluster.run_for(5.0)
    for instance in cluster.instances.values():
        assert len(instance.seen(BufferSent)) == 1
        assert not instance.seen(PeerLost)
        assert list(instance.contents.values()) == [content]


def test_flood_of_forged_hellos_is_not_reflected(engine: ModuleType) -> None:
    """The answers to one peer are limited, whatever comes in."""
    cluster = CoreCluster(engine, link=Link(delay=0.005))
    cluster.connect()
    forged = hellos_of(cluster.new_instance(1), 5.0, cluster.now)
    before = cluster.network.direction(address_of(0), address_of(1)).counts.packets
    for number in range(5000):
        packet = forged[number % len(forged)]
        cluster.network.inject(packet, source=address_of(1), target=address_of(0))
        cluster.run_for(0.001)
    answers = cluster.network.direction(address_of(0), address_of(1)).counts.packets - before
    assert answers <= 5 * 20 + 20 + 50
    assert not cluster.instances[0].seen(PeerLost)


def test_hellos_from_strangers_are_counted_and_dropped(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=Link(delay=0.005))
    stranger: Address = ("192.0.2.1", 9998)
    for packet in hellos_of(cluster.new_instance(1), 5.0, cluster.now):
        cluster.network.inject(packet, source=stranger, target=address_of(0))
    cluster.connect()
    assert cluster.instances[0].engine.stats()["unknown_address"] > 0
    assert len(cluster.instances[0].seen(PeerConnected)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_replayed_handshake_of_an_earlier_run_changes_nothing(
    engine: ModuleType, seed: int
) -> None:
    """Every packet of the first connection comes again after the restart."""
    cluster = CoreCluster(engine, link=Link(delay=0.005), seed=seed)
    arrived: list[bytes] = []
    honest = cluster.instances[0].receive_packet

    def record(packet: bytes, address: Address, now: float) -> None:
        arrived.append(packet)
        honest(packet, address, now)

    cluster.instances[0].receive_packet = record  # type: ignore[method-assign]
    cluster.connect()
    cluster.say(1, 0, b"once")
    cluster.run_for(1.0)
    cluster.kill(1)
    cluster.boot(1)
    cluster.connect()
    cluster.run_for(1.0)
    events_before = len(cluster.instances[0].events)
    for packet in random.Random(seed).choices(arrived, k=300):
        cluster.network.inject(packet, source=address_of(1), target=address_of(0))
        cluster.run_for(0.01)
    assert len(cluster.instances[0].events) == events_before
    cluster.say(0, 1, b"still connected")
    cluster.run_until(lambda: bool(cluster.instances[0].seen(MessageDelivered)), time_limit=1.0)
