"""Messages of the layers above, on endpoints over fake engines."""

from __future__ import annotations

import random

import pytest

from comfy_cluster.codec.payload import digest_of
from comfy_cluster.errors import LocalProtocolError, TransferCancelled, TransferTimeout
from comfy_cluster.protocol import MessageDelivered, MessageFailed, MessageReceived
from comfy_cluster.wire import (
    LARGEST_MESSAGE_PAYLOAD,
    PROTOCOL_TYPES,
    BufferAnnouncement,
    Message,
    MessageType,
)
from tests.unit.protocol.fake_engine import Sent, key_of
from tests.unit.protocol.world import DELAY, World

PROMPT = MessageType.DISTRIBUTE_PROMPT


def send(world: World, payload: bytes, *, target: int = 1, require_ack: bool = True) -> int:
    return world.endpoints[0].send_message(
        target, PROMPT, payload, require_ack=require_ack, now=world.now
    )


@pytest.mark.parametrize("size", [0, 1, 1_000, 1_130, 1_168, 5_000, 1_000_000])
def test_message_of_any_size_arrives_once_and_its_sender_knows(world: World, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    message_id = send(world, payload)
    world.run_for(30.0)
    assert world.seen(1, MessageReceived) == [MessageReceived(0, PROMPT, payload)]
    assert world.seen(0, MessageDelivered) == [MessageDelivered(message_id)]
    assert world.is_idle(0) and world.is_idle(1)


def test_small_message_takes_one_trip_and_its_ack_another(world: World) -> None:
    start = world.now
    send(world, b"x")
    world.run_until(lambda: bool(world.seen(1, MessageReceived)), 1.0)
    assert world.now - start == pytest.approx(DELAY)
    world.run_until(lambda: bool(world.seen(0, MessageDelivered)), 1.0)
    assert world.now - start == pytest.approx(2 * DELAY)


def test_lost_message_is_sent_again_within_some_round_trips(world: World) -> None:
    for _ in range(20):
        send(world, b"warm up")
        world.run_for(0.1)
    lost: list[Sent] = []

    def is_lost(packet: Sent) -> bool:
        if packet.message_type is PROMPT and not lost:
            lost.append(packet)
            return True
        return False

    world.is_lost = is_lost
    start = world.now
    send(world, b"important")
    world.run_until(lambda: len(world.seen(1, MessageReceived)) == 21, 1.0)
    assert world.now - start < 0.1


def test_lost_acks_make_duplicates_that_are_acted_on_once(world: World) -> None:
    acks = iter(range(100))
    world.is_lost = lambda packet: packet.message_type is MessageType.ACK and next(acks) < 3
    message_id = send(world, b"once")
    world.run_for(5.0)
    assert [event.payload for event in world.seen(1, MessageReceived)] == [b"once"]
    assert world.seen(0, MessageDelivered) == [MessageDelivered(message_id)]
    assert world.endpoints[1].stats.messages_duplicate == 3


def test_message_nobody_acknowledges_fails_by_the_text_that_users_search_for(world: World) -> None:
    world.is_lost = lambda packet: packet.message_type in (PROMPT, MessageType.ACK)
    message_id = send(world, b"lost")
    world.run_for(20.1)
    (failed,) = world.seen(0, MessageFailed)
    assert failed.message_id == message_id and isinstance(failed.error, TransferTimeout)
    assert str(failed.error).startswith("ACK timeout for message")
    assert world.endpoints[0].is_connected(1)


def test_message_without_ack_is_sent_once_and_never_reported(world: World) -> None:
    send(world, b"progress", require_ack=False)
    send(world, bytes(5_000), require_ack=False)
    world.run_for(30.0)
    assert len(world.seen(1, MessageReceived)) == 2
    assert not world.seen(0, MessageDelivered)
    assert world.is_idle(0) and world.is_idle(1)


def test_message_without_ack_to_an_absent_peer_is_dropped_and_counted() -> None:
    world = World()
    send(world, b"progress", require_ack=False)
    world.connect()
    assert not world.seen(1, MessageReceived)
    assert world.endpoints[0].stats.messages_dropped == 1


@pytest.mark.parametrize("size", [10, 5_000])
def test_message_waits_for_the_connection(size: int) -> None:
    world = World()
    send(world, bytes(size))
    world.connect()
    world.run_for(0.1)
    assert len(world.seen(1, MessageReceived)) == len(world.seen(0, MessageDelivered)) == 1


def test_broadcast_reaches_every_member() -> None:
    world = World(count=4)
    world.connect()
    ids = world.endpoints[2].broadcast_message(MessageType.FREE_MEMORY, b"now", now=world.now)
    world.run_for(0.1)
    assert sorted(ids) == [0, 1, 3] and len(set(ids.values())) == 3
    for index in (0, 1, 3):
        received = world.seen(index, MessageReceived)
        assert received == [MessageReceived(2, MessageType.FREE_MEMORY, b"now")]
    assert {event.message_id for event in world.seen(2, MessageDelivered)} == set(ids.values())


@pytest.mark.parametrize("size", [10, 5_000])
def test_cancelled_message_fails_once(world: World, size: int) -> None:
    world.is_lost = lambda packet: True
    message_id = send(world, bytes(size))
    assert world.endpoints[0].cancel_message(message_id, world.now)
    assert not world.endpoints[0].cancel_message(message_id, world.now)
    world.is_lost = lambda packet: False
    world.run_for(5.0)
    (failed,) = world.seen(0, MessageFailed)
    assert failed.message_id == message_id and isinstance(failed.error, TransferCancelled)
    assert world.is_idle(0) and world.is_idle(1)


def test_damaged_large_message_is_sent_once_more(world: World) -> None:
    send(world, bytes(5_000))
    engine = world.engines[0]
    world.run_until(lambda: bool(engine.outgoing), 1.0)
    ((buffer_id, (peer, content)),) = engine.outgoing.items()
    engine.outgoing[buffer_id] = (peer, b"\x01" + content[1:])
    world.run_for(1.0)
    assert [event.payload for event in world.seen(1, MessageReceived)] == [bytes(5_000)]
    assert len(world.seen(0, MessageDelivered)) == 1
    assert world.endpoints[1].stats.buffers_rejected == 1
    assert world.is_idle(0) and world.is_idle(1)


@pytest.mark.parametrize("kind", [*sorted(PROTOCOL_TYPES), MessageType.DISTRIBUTE_BUFFER_FANIN])
def test_types_of_the_core_cannot_be_sent_from_above(world: World, kind: MessageType) -> None:
    with pytest.raises(LocalProtocolError, match="protocol core only"):
        world.endpoints[0].send_message(1, kind, b"", now=world.now)


def test_message_too_large_is_refused_at_once(world: World) -> None:
    with pytest.raises(LocalProtocolError, match="size of the message"):
        send(world, bytes(LARGEST_MESSAGE_PAYLOAD + 1))
    assert world.is_idle(0)


def test_large_buffer_of_something_else_is_dropped_and_its_sender_not_left_waiting(
    world: World,
) -> None:
    """An intact buffer that holds no message, or one that a buffer may not hold."""
    inner = Message(5, MessageType.GOODBYE, 0, 1).pack()
    for number, content in enumerate([b"\xff" * 50, inner]):
        announcement = BufferAnnouncement(
            100 + number, len(content), 0, digest_of(content), key_of("", job=""), content
        )
        packed = announcement.pack()
        world.inject(0, 1, Message(number, MessageType.MESSAGE_BUFFER, 0, 1, True, packed))
    world.run_for(0.1)
    assert world.endpoints[1].stats.messages_malformed == 2
    assert world.endpoints[1].is_connected(0) and world.is_idle(1)


def test_announcement_of_a_message_that_is_too_large_is_dropped(world: World) -> None:
    announcement = BufferAnnouncement(100, 1 << 30, 1_148, bytes(16), key_of("", job=""))
    packed = announcement.pack()
    world.inject(0, 1, Message(1, MessageType.MESSAGE_BUFFER, 0, 1, True, packed))
    world.run_for(0.1)
    assert world.endpoints[1].stats.messages_malformed == 1 and world.is_idle(1)


@pytest.mark.parametrize("seed", range(10))
def test_every_message_arrives_exactly_once_under_heavy_loss(seed: int) -> None:
    rng = random.Random(seed)
    world = World(seed=seed)
    world.connect()
    world.is_lost = lambda packet: rng.random() < 0.3
    for number in range(300):
        world.endpoints[number % 2].send_message(
            1 - number % 2, PROMPT, b"%d" % number, now=world.now
        )
        world.run_for(0.001)
    world.run_for(15.0)
    for index in (0, 1):
        payloads = sorted(int(event.payload) for event in world.seen(1 - index, MessageReceived))
        assert payloads == list(range(index, 300, 2))
        assert len(world.seen(index, MessageDelivered)) == 150
        assert world.is_idle(index)
