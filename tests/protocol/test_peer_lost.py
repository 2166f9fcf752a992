"""A peer that dies, restarts, or cannot be reached ends in an error in the stated time."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from comfy_cluster import errors
from comfy_cluster.protocol import (
    BufferFailed,
    BufferSent,
    IncomingFailed,
    MessageFailed,
    PeerConnected,
    PeerLost,
)
from tests.core_instance import CoreCluster, address_of, only_error
from tests.simnet import Link

LINK = Link(delay=0.002, rate=500_000.0, queue_size=20_000)
INSTANCE_TIMEOUT = 3.0
HEARTBEAT_INTERVAL = 0.5
SIZE = 900_000  # most of two seconds on this link
# After its last packet a peer is silent for INSTANCE_TIMEOUT before it is lost; that packet may
# have been under way for a moment when the peer died.
STATED_TIME = INSTANCE_TIMEOUT + 0.1


@pytest.mark.parametrize("alive_for", [0.05, 0.5, 1.0])
def test_receiver_killed_in_mid_transfer(engine: ModuleType, alive_for: float) -> None:
    cluster = CoreCluster(engine, link=LINK)
    cluster.connect()
    buffer_id = cluster.send(0, 1, "a", bytes(SIZE))
    cluster.say(0, 1, b"first")
    cluster.run_for(alive_for)
    cluster.say(0, 1, b"never answered")
    cluster.kill(1)
    died_at = cluster.now
    sender = cluster.instances[0]
    cluster.run_until(lambda: bool(sender.seen(BufferFailed)), time_limit=10.0)
    assert INSTANCE_TIMEOUT - 0.1 <= cluster.now - died_at <= STATED_TIME
    assert [event.reason for event in sender.seen(PeerLost)] == ["silent for 3.0 s"]
    error = only_error(sender.seen(BufferFailed))
    assert isinstance(error, errors.PeerLost) and "instance 1" in str(error)
    assert sender.seen(BufferFailed)[0].buffer_id == buffer_id
    error = only_error(sender.seen(MessageFailed))
    assert isinstance(error, errors.PeerLost) and "instance 1" in str(error)


@pytest.mark.parametrize("alive_for", [0.05, 0.5, 1.0])
def test_sender_killed_in_mid_transfer(engine: ModuleType, alive_for: float) -> None:
    cluster = CoreCluster(engine, link=LINK)
    cluster.connect()
    cluster.claim(1, "a", 0)
    cluster.claim(1, "never announced", 0)
    cluster.send(0, 1, "a", bytes(SIZE))
    cluster.run_for(alive_for)
    cluster.kill(0)
    died_at = cluster.now
    receiver = cluster.instances[1]
    cluster.run_until(lambda: len(receiver.seen(IncomingFailed)) == 2, time_limit=10.0)
    assert cluster.now - died_at <= STATED_TIME
    for event in receiver.seen(IncomingFailed):
        assert isinstance(event.error, errors.PeerLost) and "instance 0" in str(event.error)
    assert not receiver.contents


def test_other_peers_do_not_notice(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=3, link=LINK)
    cluster.connect()
    cluster.send(0, 1, "a", bytes(SIZE))
    cluster.send(0, 2, "b", bytes(SIZE))
    cluster.run_for(0.3)
    cluster.kill(1)
    sender = cluster.instances[0]
    cluster.run_until(
        lambda: bool(sender.seen(BufferFailed) and sender.seen(BufferSent)), time_limit=10.0
    )
    cluster.run_for(10.0)
    assert [event.peer for event in sender.seen(PeerLost)] == [1]
    assert [event.peer for event in cluster.instances[2].seen(PeerLost)] == [1]
    assert len(cluster.instances[2].contents) == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_restarted_peer_fails_what_was_under_way_and_connects_anew(
    engine: ModuleType, seed: int, loss: float
) -> None:
    link = replace(LINK, loss=loss)
    cluster = CoreCluster(engine, link=link, seed=seed)
    cluster.connect()
    cluster.send(0, 1, "a", bytes(SIZE))
    cluster.run_for(0.5)
    boot_ids = [event.boot_id for event in cluster.instances[0].seen(PeerConnected)]
    cluster.kill(1)
    restarted = cluster.boot(1)
    sender = cluster.instances[0]
    cluster.run_until(lambda: bool(sender.seen(BufferFailed)), time_limit=STATED_TIME + 1.0)
    assert isinstance(only_error(sender.seen(BufferFailed)), errors.PeerLost)
    cluster.connect(time_limit=5.0)
    assert sender.seen(PeerConnected)[-1].boot_id == restarted.settings.boot_id
    assert restarted.settings.boot_id not in boot_ids
    if loss == 0.0:
        assert [event.reason for event in sender.seen(PeerLost)] == ["restarted"]
    cluster.send(0, 1, "again", bytes(90_000))
    cluster.run_until(lambda: len(restarted.contents) == 1, time_limit=10.0)


def test_network_that_is_cut_and_heals(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=LINK)
    cluster.connect()
    cluster.network.set_links(Link(loss=1.0))
    cluster.run_for(10.0)
    for index, instance in cluster.instances.items():
        assert [event.peer for event in instance.seen(PeerLost)] == [1 - index]
    cluster.network.set_links(LINK)
    cluster.connect(time_limit=4.0)
    cluster.send(0, 1, "a", bytes(SIZE))
    cluster.run_until(lambda: bool(cluster.instances[0].seen(BufferSent)), time_limit=10.0)


def test_cut_shorter_than_the_timeout_is_survived(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=LINK)
    cluster.connect()
    cluster.send(0, 1, "a", bytes(SIZE))
    cluster.run_for(0.5)
    cluster.network.set_links(Link(loss=1.0))
    cluster.run_for(INSTANCE_TIMEOUT - 2 * HEARTBEAT_INTERVAL)
    cluster.network.set_links(LINK)
    cluster.run_until(lambda: bool(cluster.instances[0].seen(BufferSent)), time_limit=10.0)
    assert not cluster.instances[0].seen(PeerLost)


def test_path_that_works_one_way_is_lost_on_both_sides(engine: ModuleType) -> None:
    """Instance 1 hears instance 0 and is not heard: 0 loses it, and 1 must not wait for ever."""
    cluster = CoreCluster(engine, link=LINK)
    cluster.connect()
    cluster.network.set_link(address_of(1), address_of(0), Link(loss=1.0))
    cluster.send(1, 0, "a", bytes(SIZE))
    cluster.run_until(lambda: bool(cluster.instances[1].seen(BufferFailed)), time_limit=30.0)
    assert cluster.instances[0].seen(PeerLost)


def test_goodbye_is_noticed_at_once(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=LINK)
    cluster.connect()
    cluster.send(0, 1, "a", bytes(SIZE))
    cluster.run_for(0.3)
    cluster.instances[1].endpoint.close(cluster.now)
    cluster.run_until(lambda: bool(cluster.instances[0].seen(BufferFailed)), time_limit=0.5)
    assert isinstance(only_error(cluster.instances[0].seen(BufferFailed)), errors.PeerLost)


def test_closing_fails_what_this_instance_had_under_way(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, link=LINK)
    cluster.connect()
    closing = cluster.instances[0]
    cluster.send(0, 1, "a", bytes(SIZE))
    cluster.claim(0, "b", 1)
    cluster.say(0, 1, b"x" * 5000)
    cluster.run_for(0.001)
    closing.endpoint.close(cluster.now)
    closing.endpoint.close(cluster.now)
    closing.turn(cluster.now)
    for kind in (BufferFailed, IncomingFailed, MessageFailed):
        assert isinstance(only_error(closing.seen(kind)), errors.TransferCancelled)
