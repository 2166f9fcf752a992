"""One who only looks, in the place of a member: reached both ways, and nobody's member."""

from __future__ import annotations

import logging

import pytest

from comfy_cluster.protocol import (
    BufferFailed,
    IncomingFailed,
    MessageDelivered,
    MessageFailed,
    MessageReceived,
    PeerConnected,
    PeerLost,
    StrangerHeard,
)
from comfy_cluster.wire import Announce, InstanceRole, Message, MessageType
from tests.unit.protocol.fake_engine import address_of
from tests.unit.protocol.world import World

WORK = MessageType.DISTRIBUTE_PROMPT


def reaches(world: World, index: int, observer: int) -> bool:
    """Whether an instance and one who looks in the place of `observer` reach each other."""
    info = world.endpoints[index].peer_info(observer)
    return info.is_observer and world.endpoints[observer].is_connected(index)


def look(world: World, index: int) -> None:
    """An observer comes in the place of an instance that is not there."""
    world.boot(index, is_observer=True)
    others = [each for each in world.endpoints if each != index]
    world.run_until(lambda: all(reaches(world, each, index) for each in others), 5.0)


@pytest.fixture
def watched() -> World:
    """Two instances, connected, of three; in the place of instance 2 somebody looks."""
    world = World(count=3)
    world.kill(2)
    world.connect()
    for each in (0, 1):
        world.events[each].clear()
    look(world, 2)
    return world


def test_it_reaches_all_and_is_reached_and_no_event_tells_of_it(watched: World) -> None:
    watched.run_for(30.0)
    assert {each.peer for each in watched.seen(2, PeerConnected)} == {0, 1}
    assert watched.events[0] == watched.events[1] == []
    info = watched.endpoints[0].peer_info(2)
    assert (info.is_connected, info.is_observer, info.is_heard) == (False, True, True)
    assert not watched.endpoints[0].is_connected(2)


def test_it_gets_heartbeats_and_nothing_else(watched: World) -> None:
    endpoint = watched.endpoints[0]
    endpoint.send_message(2, WORK, b"work", now=watched.now)
    endpoint.send_message(2, WORK, b"work", require_ack=False, now=watched.now)
    endpoint.send_message(2, WORK, bytes(5_000), now=watched.now)
    watched.send(0, 2, "node", bytes(100))
    watched.send(0, 2, "large", bytes(50_000))
    watched.run_for(10.0)
    told = {packet.message_type for packet in watched.log if packet.target == address_of(2)}
    assert told == {MessageType.ANNOUNCE, MessageType.HEARTBEAT}
    assert not watched.seen(2, MessageReceived)


def test_what_waits_for_the_member_waits_on_and_reaches_it(watched: World) -> None:
    endpoint = watched.endpoints[0]
    message_id = endpoint.send_message(2, WORK, b"work", now=watched.now)
    watched.claim(0, "part", source=2)
    watched.endpoints[2].close(watched.now)  # it has seen enough
    watched.run_for(1.0)
    failures = (MessageFailed, IncomingFailed, BufferFailed, PeerLost)
    assert not [event for event in watched.events[0] if isinstance(event, failures)]
    watched.boot(2)
    watched.connect()
    assert [event.payload for event in watched.seen(2, MessageReceived)] == [b"work"]
    assert [event.message_id for event in watched.seen(0, MessageDelivered)] == [message_id]


def test_a_claim_ends_as_if_nobody_were_there(watched: World) -> None:
    watched.claim(0, "part", source=2)
    timeout = watched.endpoints[0].settings.message_timeout
    watched.run_until(lambda: bool(watched.seen(0, IncomingFailed)), timeout + 1.0)


def test_the_member_that_comes_back_at_its_address_takes_its_place() -> None:
    world = World()
    world.connect()
    look(world, 1)
    assert [event.reason for event in world.seen(0, PeerLost)] == ["restarted"]
    world.boot(1)
    world.connect()
    assert [event.boot_id for event in world.seen(0, PeerConnected)] == [2, 4]
    assert not world.endpoints[0].peer_info(1).is_observer


def test_the_member_that_is_found_elsewhere_takes_its_place(watched: World) -> None:
    elsewhere = ("10.9.9.9", 9)
    watched.endpoints[0].add_member(2, elsewhere, watched.now)
    info = watched.endpoints[0].peer_info(2)
    assert (info.address, info.is_observer, info.is_heard) == (elsewhere, False, False)
    before = len(watched.log)
    watched.run_for(1.0)
    hellos = [packet for packet in watched.log[before:] if packet.target == elsewhere]
    assert hellos and not Announce.parse(hellos[0].message.payload).is_connected


def claimed_twice() -> World:
    """Instance 2 is said to be where 1 was connected, and where somebody looks now."""
    world = World(count=3)
    world.kill(2)
    world.connect()
    world.endpoints[0].add_member(2, address_of(1), world.now)
    world.boot(1, is_observer=True)
    world.run_until(lambda: reaches(world, 0, 1), 5.0)
    assert world.endpoints[0].peer_info(2).address == address_of(2)
    return world


def test_an_observer_s_address_is_taken_by_the_member_that_is_found_there_again() -> None:
    world = claimed_twice()
    endpoint = world.endpoints[0]
    endpoint.add_member(2, address_of(1), world.now)
    assert endpoint.peer_info(2).address == address_of(1)
    assert endpoint.peer_info(1).address is None


def test_an_observer_that_leaves_gives_its_address_to_the_member_found_there_before() -> None:
    world = claimed_twice()
    world.endpoints[1].close(world.now)
    world.run_for(0.1)
    assert world.endpoints[0].peer_info(2).address == address_of(1)


def test_a_member_that_was_found_elsewhere_since_is_not_moved_to_an_older_place() -> None:
    world = claimed_twice()
    elsewhere = ("10.9.9.9", 9)
    world.endpoints[0].add_member(2, elsewhere, world.now)
    world.endpoints[1].close(world.now)
    world.run_for(0.1)
    assert world.endpoints[0].peer_info(2).address == elsewhere
    assert world.endpoints[0].peer_info(1).address == address_of(1)


def test_an_observer_that_is_found_elsewhere_leaves_its_address_to_who_was_found_there() -> None:
    world = claimed_twice()
    elsewhere = ("10.9.9.9", 9)
    world.endpoints[0].add_member(1, elsewhere, world.now)
    assert world.endpoints[0].peer_info(1).address == elsewhere
    assert world.endpoints[0].peer_info(2).address == address_of(1)


def test_observers_are_counted_apart(watched: World) -> None:
    watched.endpoints[2].close(watched.now)
    watched.run_for(0.1)
    stats = watched.endpoints[0].stats
    counts = (stats.connections_made, stats.connections_lost, stats.observers_connected)
    assert counts == (1, 0, 1)


def test_an_observer_elsewhere_is_nobody_while_the_member_is_heard() -> None:
    """And it is told as what it is where nobody is heard."""
    world = World()
    stranger = ("10.9.9.9", 9)
    world.kill(1)
    for is_observer in (True, False):
        hello = hello_of(world, is_observer=is_observer)
        world.endpoints[0]._connections.on_hello(stranger, hello, world.now)
    world.run_for(0.1)
    told = world.seen(0, StrangerHeard)
    assert told == [StrangerHeard(1, stranger, is_observer=each) for each in (True, False)]
    world = World()
    world.connect()
    for is_observer, heard in ((True, []), (False, [stranger])):
        hello = hello_of(world, is_observer=is_observer)
        world.endpoints[0]._connections.on_hello(stranger, hello, world.now)
        world.run_for(0.1)
        assert [event.address for event in world.seen(0, StrangerHeard)] == heard
    assert not world.seen(0, PeerLost)


def hello_of(world: World, *, is_observer: bool) -> bytes:
    ours = world.endpoints[0].settings
    announce = Announce(
        cluster_id=ours.cluster_id,
        instance_index=1,
        instance_count=ours.instance_count,
        role=InstanceRole.FOLLOWER,
        boot_id=99,
        session_id=7,
        is_observer=is_observer,
    )
    return Message(0, MessageType.ANNOUNCE, 1, 0, payload=announce.pack()).pack()


def test_work_that_it_gives_is_dropped_and_counted(watched: World) -> None:
    malformed = watched.endpoints[0].stats.messages_malformed
    watched.endpoints[2].send_message(0, WORK, b"work", now=watched.now)
    watched.send(2, 0, "node", bytes(100))
    watched.run_for(1.0)
    assert watched.events[0] == []
    assert watched.endpoints[0].stats.messages_malformed > malformed


def test_one_that_falls_silent_is_forgotten_without_a_warning(
    watched: World, caplog: pytest.LogCaptureFixture
) -> None:
    watched.kill(2)
    with caplog.at_level(logging.INFO):
        watched.run_until(lambda: not watched.endpoints[0].peer_info(2).is_observer, 5.0)
    assert not caplog.records
    assert watched.events[0] == []


def test_its_goodbye_is_heard_and_it_is_told_of_one(watched: World) -> None:
    watched.endpoints[0].close(watched.now)
    watched.endpoints[2].close(watched.now)
    watched.run_for(0.1)
    assert not watched.endpoints[1].peer_info(2).is_observer
    goodbyes = [p for p in watched.log if p.message_type is MessageType.GOODBYE]
    assert {(p.source, p.target) for p in goodbyes} >= {(0, address_of(2)), (2, address_of(1))}


def test_two_that_look_at_each_other_reach_each_other() -> None:
    world = World()
    for index in (0, 1):
        world.boot(index, is_observer=True)
    world.run_until(
        lambda: all(each.peer_info(1 - i).is_observer for i, each in world.endpoints.items()), 5.0
    )
    assert world.events == {0: [], 1: []}


def test_a_member_that_is_removed_takes_the_observer_with_it(watched: World) -> None:
    endpoint = watched.endpoints[0]
    endpoint.send_message(2, WORK, b"work", now=watched.now)
    endpoint.remove_member(2, watched.now)
    watched.run_for(1.0)
    assert len(watched.seen(0, MessageFailed)) == 1
    assert not watched.seen(0, PeerLost)
