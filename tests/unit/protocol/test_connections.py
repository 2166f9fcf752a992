"""Members, connections and their loss, on endpoints over fake engines."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from comfy_cluster.errors import LocalProtocolError
from comfy_cluster.errors import PeerLost as PeerLostError
from comfy_cluster.fastpath import EVENT_HELLO
from comfy_cluster.protocol import (
    MessageDelivered,
    MessageFailed,
    MessageReceived,
    PeerConnected,
    PeerLost,
    PeerRefused,
    StrangerHeard,
)
from comfy_cluster.protocol.peers import FIRST_HELLO_DELAY
from comfy_cluster.wire import Announce, InstanceRole, Message, MessageType
from tests.unit.protocol.fake_engine import Sent, address_of
from tests.unit.protocol.world import World


def test_instances_connect_and_say_so_once() -> None:
    world = World(count=4)
    world.connect()
    world.run_for(30.0)
    for index in range(4):
        connected = world.seen(index, PeerConnected)
        assert sorted(event.peer for event in connected) == [n for n in range(4) if n != index]
        assert not world.seen(index, PeerLost)
        for event in connected:
            assert event.boot_id == event.peer + 1 and event.address == address_of(event.peer)


def test_connecting_takes_few_hellos_and_none_after() -> None:
    world = World()
    world.connect()
    world.run_for(60.0)
    assert world.sent_types(0).count(MessageType.ANNOUNCE) <= 4
    assert world.sent_types(1).count(MessageType.ANNOUNCE) <= 4


@pytest.mark.parametrize("seed", range(20))
def test_instances_connect_whatever_packets_are_lost(seed: int) -> None:
    world = World(count=3, seed=seed)
    chance = iter(range(10_000))
    world.is_lost = lambda packet: (next(chance) * 2_654_435_761 + seed * 97) % 10 < 4
    world.connect()
    world.is_lost = lambda packet: False
    world.run_for(10.0)
    for index in range(3):
        assert all(world.endpoints[index].is_connected(n) for n in range(3) if n != index)


def test_hello_is_repeated_more_and_more_rarely_while_nobody_answers() -> None:
    world = World()
    world.kill(1)
    world.run_for(10.0)
    assert 8 <= len(world.log) <= 25
    before = len(world.log)
    world.run_for(60.0)
    assert 48 <= len(world.log) - before <= 76


def test_silent_peer_is_lost_in_time_and_what_is_under_way_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.connect()
    world.kill(1)
    endpoint = world.endpoints[0]
    message_id = endpoint.send_message(1, MessageType.FREE_MEMORY, b"", now=world.now)
    buffer_id = world.send(0, 1, "node", bytes(5_000))
    world.claim(0, "other", source=1)
    died_at = world.now
    with caplog.at_level(logging.WARNING):
        world.run_until(lambda: bool(world.seen(0, PeerLost)), 10.0)
    assert world.now - died_at <= 3.0 + 0.6
    assert any(record.message.startswith("Instance timeout") for record in caplog.records)
    (lost,) = world.seen(0, PeerLost)
    assert lost.peer == 1 and lost.reason.startswith("silent for 3.")
    failed = [event for event in world.events[0] if hasattr(event, "error")]
    assert len(failed) == 3
    assert all(isinstance(event.error, PeerLostError) and event.error.peer == 1 for event in failed)
    assert {getattr(event, "message_id", None) for event in failed} >= {message_id}
    assert {getattr(event, "buffer_id", None) for event in failed} >= {buffer_id}
    assert not endpoint.is_connected(1) and world.is_idle(0)


def test_lost_peer_comes_back_under_the_same_index() -> None:
    world = World()
    world.connect()
    world.kill(1)
    world.run_for(10.0)
    world.boot(1)
    world.connect()
    assert [event.boot_id for event in world.seen(0, PeerConnected)] == [2, 3]
    world.endpoints[0].send_message(1, MessageType.FREE_MEMORY, b"again", now=world.now)
    world.run_for(0.1)
    assert [event.payload for event in world.seen(1, MessageReceived)] == [b"again"]


def test_restarted_peer_replaces_its_connection_before_it_was_missed() -> None:
    world = World()
    world.connect()
    buffer_id = world.send(0, 1, "node", bytes(5_000))
    world.run_for(0.1)
    world.boot(1)
    world.run_for(1.0)
    lost, connected = world.seen(0, PeerLost), world.seen(0, PeerConnected)
    assert [event.reason for event in lost] == ["restarted"]
    assert [event.boot_id for event in connected] == [2, 3]
    order = [type(event).__name__ for event in world.events[0]]
    assert order.index("PeerLost") < order.index("BufferFailed") < order.index("PeerConnected", 1)
    assert buffer_id in {getattr(event, "buffer_id", None) for event in world.events[0]}
    assert world.endpoints[1].is_connected(0)


def test_one_sided_silence_makes_both_sides_connect_anew() -> None:
    world = World()
    world.connect()
    world.is_lost = lambda packet: packet.source == 1 and packet.session != 0
    world.run_until(lambda: bool(world.seen(0, PeerLost)), 10.0)
    world.is_lost = lambda packet: False
    world.run_for(5.0)
    assert world.endpoints[0].is_connected(1) and world.endpoints[1].is_connected(0)
    assert "connected anew" in world.seen(1, PeerLost)[0].reason
    world.endpoints[1].send_message(0, MessageType.FREE_MEMORY, b"", now=world.now)
    world.run_for(0.1)
    assert len(world.seen(1, MessageDelivered)) == 1


def test_lost_last_hello_does_not_keep_one_side_waiting_for_the_timeout() -> None:
    world = World()
    lost: list[Sent] = []

    def is_lost(packet: Sent) -> bool:
        if is_final(packet) and len(lost) < 2:
            lost.append(packet)
            return True
        return False

    world.is_lost = is_lost
    world.run_until(lambda: all(e.is_connected(1 - i) for i, e in world.endpoints.items()), 1.5)
    assert len(lost) == 2


def is_final(packet: Sent) -> bool:
    """A HELLO that says that its sender is connected."""
    message = packet.message
    return (
        message.message_type is MessageType.ANNOUNCE
        and Announce.parse(message.payload).is_connected
    )


def test_closing_instance_says_goodbye() -> None:
    world = World()
    world.connect()
    world.endpoints[1].close(world.now)
    world.run_for(0.1)
    (lost,) = world.seen(0, PeerLost)
    assert lost.reason.startswith("left")


def test_instance_of_another_cluster_is_refused_once_by_reason() -> None:
    world = World()
    world.kill(1)
    world.boot(1, cluster_id="other")
    world.run_for(20.0)
    for index in (0, 1):
        (refused,) = world.seen(index, PeerRefused)
        assert refused.peer == 1 - index and "CLUSTER_ID" in refused.reason
        assert not world.endpoints[index].is_connected(1 - index)
    assert world.endpoints[0].stats.peers_refused > 1


def test_refusals_that_somebody_makes_up_are_bounded() -> None:
    world = World()
    world.connect()
    hello = next(packet for packet in world.log if packet.source == 1).message
    for number in range(100):
        announce = replace(Announce.parse(hello.payload), cluster_id=f"made up {number}")
        forged = replace(hello, payload=announce.pack())
        world.engines[1].send_hello(address_of(0), forged.pack())
    world.run_for(0.1)
    assert len(world.seen(0, PeerRefused)) <= 8
    assert world.endpoints[0].is_connected(1)


def test_flood_of_hellos_gets_few_answers_and_changes_nothing() -> None:
    world = World()
    world.connect()
    hello = next(packet for packet in world.log if packet.source == 1).message
    announce = replace(Announce.parse(hello.payload), boot_id=99, session_id=5, echo_session_id=0)
    before = len(world.log)
    for _ in range(500):
        world.engines[1].send_hello(address_of(0), replace(hello, payload=announce.pack()).pack())
    world.run_for(0.2)
    answers = [p for p in world.log[before:] if p.source == 0 and p.session == 0]
    assert len(answers) <= 30
    assert world.endpoints[0].stats.hellos_unanswered > 400
    world.run_for(5.0)
    assert not world.seen(0, PeerLost) and not world.seen(1, PeerLost)


@pytest.mark.parametrize("payload", [b"", b"\xff" * 50, Message(0, MessageType.ACK, 1, 0).pack()])
def test_malformed_hello_is_counted_and_dropped(payload: bytes) -> None:
    world = World()
    world.connect()
    world.engines[1].send_hello(address_of(0), payload)
    world.run_for(1.0)
    assert world.endpoints[0].stats.messages_malformed == 1
    assert world.endpoints[0].is_connected(1)


def test_removed_member_is_lost_and_no_longer_heard() -> None:
    world = World()
    world.connect()
    endpoint = world.endpoints[0]
    endpoint.send_message(1, MessageType.FREE_MEMORY, b"", now=world.now)
    endpoint.remove_member(1, world.now)
    endpoint.remove_member(1, world.now)
    world.run_for(5.0)
    assert [event.reason for event in world.seen(0, PeerLost)] == ["removed from the cluster"]
    assert len(world.seen(0, MessageFailed)) == 1
    assert not world.engines[0].allowed and not endpoint.members
    with pytest.raises(LocalProtocolError, match="not a peer"):
        endpoint.send_message(1, MessageType.FREE_MEMORY, b"", now=world.now)
    endpoint.add_member(1, address_of(1), world.now)
    world.run_for(5.0)
    assert endpoint.is_connected(1)


def test_member_with_a_new_address_is_found_there() -> None:
    world = World()
    world.kill(1)
    world.run_for(30.0)  # by now HELLOs are rare
    endpoint = world.endpoints[0]
    endpoint.add_member(1, ("10.0.0.77", 9998), world.now)
    world.run_for(1.5 * FIRST_HELLO_DELAY)
    targets = {packet.target for packet in world.log if packet.source == 0}
    assert world.engines[0].allowed == {("10.0.0.77", 9998)}
    assert ("10.0.0.77", 9998) in targets


@pytest.mark.parametrize("index", [0, 2, -1])
def test_only_other_instances_of_the_cluster_can_be_members(index: int) -> None:
    world = World()
    with pytest.raises(LocalProtocolError):
        world.endpoints[0].add_member(index, ("10.0.0.9", 9998), 0.0)


def test_a_report_takes_no_address_from_a_connected_member(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(count=3)
    world.connect()
    endpoint = world.endpoints[0]
    with caplog.at_level(logging.WARNING, "comfy_cluster.protocol"):
        for _ in range(2):
            endpoint.add_member(2, address_of(1), world.now)
            world.run_for(1.0)
    assert not world.seen(0, PeerLost)
    (refused,) = world.seen(0, PeerRefused)
    assert refused.peer == 2 and "10.0.0.2:9998, where instance 1 is connected" in refused.reason
    assert sum("10.0.0.2:9998" in each.message for each in caplog.records) == 1


def test_an_address_is_taken_when_the_connection_there_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(count=3)
    world.kill(2)
    world.run_until(lambda: world.endpoints[0].is_connected(1), 5.0)
    endpoint = world.endpoints[0]
    endpoint.add_member(2, address_of(1), world.now)
    assert endpoint.peer_info(1).address == address_of(1)
    world.kill(1)
    world.run_for(5.0)
    assert [event.peer for event in world.seen(0, PeerLost)] == [1]
    assert endpoint.members == [1, 2] and endpoint.peer_info(1).address is None
    assert endpoint.peer_info(2).address == address_of(1)
    assert world.engines[0].allowed == {address_of(1)}


def test_members_that_swap_addresses_are_both_found_again() -> None:
    """Two containers come back at each other's addresses; names are looked up one by one."""
    world = World(count=3)
    world.kill(1)
    world.kill(2)
    world.run_for(1.0)
    endpoint = world.endpoints[0]
    endpoint.add_member(1, address_of(2), world.now)
    endpoint.remove_member(2, world.now)
    endpoint.add_member(2, address_of(1), world.now)
    endpoint.add_member(1, address_of(1), world.now)
    endpoint.add_member(2, address_of(2), world.now)
    world.boot(1)
    world.boot(2)
    world.connect()
    assert world.engines[0].allowed == {address_of(1), address_of(2)}


def test_member_without_an_address_gets_no_hello_and_may_be_removed() -> None:
    world = World(count=3)
    world.is_lost = lambda packet: True
    endpoint = world.endpoints[0]
    endpoint.add_member(2, address_of(1), world.now)
    world.run_for(30.0)
    assert not endpoint.is_connected(1) and endpoint.peer_info(1).address is None
    endpoint.remove_member(1, world.now)
    assert endpoint.members == [2]


def test_peer_that_acknowledges_nothing_is_lost_although_it_is_heard() -> None:
    world = World()
    world.connect()
    world.is_lost = lambda packet: packet.source == 1 and packet.message_type is MessageType.ACK
    world.claim(1, "node")
    world.send(1, 0, "node", b"", job="x")  # the confirmation of it is never acknowledged
    world.run_for(0.1)
    arrived = world.arrived(0)["node"]
    world.endpoints[0].confirm_buffer(arrived.buffer_id, world.now)
    world.run_for(25.0)
    assert "does not acknowledge" in world.seen(0, PeerLost)[0].reason


def test_info_of_a_peer() -> None:
    world = World(options={"engine_name": "fake", "software_version": "1.2"})
    assert not world.endpoints[0].peer_info(1).is_connected
    world.connect()
    info = world.endpoints[0].peer_info(1)
    assert (info.peer, info.address, info.is_connected) == (1, address_of(1), True)
    assert (info.boot_id, info.role, info.engine_name) == (2, "FOLLOWER", "fake")
    assert info.packet_size == 1_200 and info.software_version == "1.2"
    with pytest.raises(KeyError):
        world.endpoints[0].peer_info(7)


def hello_of(world: World, index: int, **changed: object) -> bytes:
    """A HELLO of an instance, with other contents."""
    world.run_for(0.3)
    sent = next(each for each in world.log if each.source == index and each.session == 0)
    message = Message.parse(sent.payload)
    announce = replace(Announce.parse(message.payload), **changed)  # type: ignore[arg-type]
    return replace(message, payload=announce.pack()).pack()


STRANGE = ("10.9.9.9", 5)


def test_an_instance_that_nobody_named_is_told() -> None:
    world = World(count=3)
    hello = hello_of(world, 1)
    world.endpoints[0].remove_member(1, world.now)
    world.engines[0].events.append((EVENT_HELLO, STRANGE, hello))
    world.run_for(0.01)
    assert world.seen(0, StrangerHeard) == [StrangerHeard(1, STRANGE)]


def test_an_instance_where_another_one_was_is_told_when_that_one_is_gone() -> None:
    world = World(count=3)
    world.connect()
    hello = hello_of(world, 2)
    world.kill(2)
    world.engines[0].events.append((EVENT_HELLO, address_of(1), hello))
    world.run_for(0.01)
    assert not world.seen(0, StrangerHeard), "1 is connected there"
    world.kill(1)
    world.run_for(10.0)
    world.engines[0].events.append((EVENT_HELLO, address_of(1), hello))
    world.run_for(0.01)
    assert world.seen(0, StrangerHeard) == [StrangerHeard(2, address_of(1))]
    (refused,) = world.seen(0, PeerRefused)
    assert "answers as instance 2" in refused.reason, "in a list of addresses that is a mistake"


@pytest.mark.parametrize("changed", [{"cluster_id": "other"}, {"instance_index": 0, "role": 1}])
def test_neighbours_and_doubles_are_no_business_of_the_core(changed: dict[str, object]) -> None:
    world = World(count=3)
    if "role" in changed:
        changed = {**changed, "role": InstanceRole.LEADER}
    world.engines[0].events.append((EVENT_HELLO, STRANGE, hello_of(world, 1, **changed)))
    world.run_for(0.01)
    assert not world.seen(0, StrangerHeard) and not world.seen(0, PeerRefused)


def test_a_stranger_that_does_not_fit_is_refused_once() -> None:
    world = World(count=3)
    hello = hello_of(world, 1, instance_count=9)
    for _ in range(3):
        world.engines[0].events.append((EVENT_HELLO, STRANGE, hello))
    world.run_for(0.01)
    (refused,) = world.seen(0, PeerRefused)
    assert refused.peer == 1 and "counts 9 instances" in refused.reason
    assert "10.9.9.9:5" in refused.reason
