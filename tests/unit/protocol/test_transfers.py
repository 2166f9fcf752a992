"""Buffers from announcement to release, on endpoints over fake engines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comfy_cluster.errors import (
    LocalProtocolError,
    TransferTimeout,
)
from comfy_cluster.errors import PeerLost as PeerLostError
from comfy_cluster.protocol import (
    BufferArrived,
    BufferFailed,
    BufferSent,
    IncomingFailed,
)
from comfy_cluster.wire import (
    BufferAccept,
    BufferAnnouncement,
    Message,
    MessageType,
)
from tests.unit.protocol.fake_engine import key_of, payload_of
from tests.unit.protocol.world import World

MEGABYTE = 1_000_000
BUFFER = MessageType.DISTRIBUTE_BUFFER_FANOUT


@pytest.mark.parametrize("size", [0, 1, 64, 900, 901, 5_000, MEGABYTE])
def test_payload_arrives_as_it_was_sent(world: World, size: int) -> None:
    content = bytes(number * 7 % 251 for number in range(min(size, 1_000))) * (size // 1_000 or 1)
    buffer_id = world.send(0, 1, "node", content)
    world.claim(1, "node")
    world.run_for(0.1)
    (arrived,) = world.seen(1, BufferArrived)
    assert arrived.key == key_of("node") and arrived.message_type is BUFFER
    assert bytes(arrived.memory)[: arrived.size] == content
    assert arrived.digest == payload_of(content).digest()
    assert not world.seen(0, BufferSent)
    world.confirm_all()
    assert world.seen(0, BufferSent) == [BufferSent(buffer_id)]
    world.release_all()
    assert world.is_idle(0) and world.is_idle(1)


def test_small_payload_travels_inside_the_announcement(world: World) -> None:
    payload = payload_of(b"a" * 500, prefix_size=100)
    world.endpoints[0].send_buffer(
        1, key_of("node"), payload, digest=payload.digest(), message_type=BUFFER, now=world.now
    )
    world.run_for(0.1)
    assert bytes(world.arrived(1)["node"].memory) == b"a" * 500
    assert not any(packet.buffer_id for packet in world.log)


def test_small_payload_with_long_names_goes_in_chunks(world: World) -> None:
    world.send(0, 1, "n" * 255, b"a" * 890, job="j" * 255)
    world.run_for(0.1)
    assert len(world.seen(1, BufferArrived)) == 1
    assert any(packet.buffer_id for packet in world.log)


def test_nothing_is_sent_before_the_receiver_has_memory(world: World) -> None:
    world.send(0, 1, "node", bytes(3 * MEGABYTE))
    world.run_for(5.0)
    assert not world.engines[0].outgoing and not world.engines[1].incoming
    world.claim(1, "node")
    world.run_for(0.1)
    assert len(world.seen(1, BufferArrived)) == 1


def test_buffer_sent_before_the_connection_goes_when_it_is_there() -> None:
    world = World()
    world.send(0, 1, "node", bytes(5_000))
    world.connect()
    world.run_for(0.1)
    assert len(world.seen(1, BufferArrived)) == 1


def test_buffer_to_a_peer_that_never_connects_fails_in_time_by_name() -> None:
    world = World()
    world.kill(1)
    buffer_id = world.send(0, 1, "node", bytes(5_000))
    world.run_for(19.9)
    assert not world.seen(0, BufferFailed)
    world.run_for(0.2)
    (failed,) = world.seen(0, BufferFailed)
    assert failed.buffer_id == buffer_id
    assert isinstance(failed.error, TransferTimeout) and failed.error.peer == 1
    assert "instance 1 is not connected" in str(failed.error)
    assert world.is_idle(0)


def test_claim_of_a_peer_that_never_connects_fails_in_time_by_name() -> None:
    world = World()
    world.kill(1)
    world.claim(0, "node", source=1)
    world.run_for(20.1)
    (failed,) = world.seen(0, IncomingFailed)
    assert isinstance(failed.error, PeerLostError) and failed.error.peer == 1
    assert failed.key == key_of("node", 1) and failed.buffer_id is None
    assert world.is_idle(0)


def test_claim_waits_as_long_as_its_source_lives() -> None:
    world = World()
    world.claim(1, "node")
    world.connect()
    world.run_for(300.0)
    assert not world.seen(1, IncomingFailed)
    world.send(0, 1, "node", b"late")
    world.run_for(0.1)
    assert len(world.seen(1, BufferArrived)) == 1


def test_transfers_are_found_by_key_whatever_their_order(world: World) -> None:
    for name in ("a", "b", "c"):
        world.send(0, 1, name, name.encode() * 2_000)
    for name in ("c", "a", "b"):
        world.claim(1, name)
    world.run_for(0.1)
    arrived = world.arrived(1)
    assert {name: bytes(event.memory)[:1] for name, event in arrived.items()} == {
        "a": b"a",
        "b": b"b",
        "c": b"c",
    }


def test_wrong_use_is_refused_with_a_reason(world: World) -> None:
    endpoint, payload = world.endpoints[0], payload_of(b"x")
    for peer, key, message_type, digest, text in [
        (1, key_of("n"), MessageType.FREE_MEMORY, bytes(16), "does not announce a buffer"),
        (5, key_of("n"), BUFFER, bytes(16), "not a peer"),
        (1, key_of("n", source=1), BUFFER, bytes(16), "cannot be sent by"),
        (1, key_of("n"), BUFFER, b"short", "digest"),
    ]:
        with pytest.raises(LocalProtocolError, match=text):
            endpoint.send_buffer(
                peer, key, payload, digest=digest, message_type=message_type, now=world.now
            )
    assert world.is_idle(0)


def test_answers_about_buffers_that_are_gone_say_so(world: World) -> None:
    endpoint = world.endpoints[0]
    assert not endpoint.confirm_buffer(5, world.now)
    assert not endpoint.reject_buffer(5, "", world.now)
    assert not endpoint.release_buffer(5, world.now)
    assert not endpoint.cancel_buffer(5, world.now)


def test_foreign_announcements_are_dropped(world: World) -> None:
    good = BufferAnnouncement(77, 5_000, 1_148, bytes(16), key_of("node"))
    for number, bad in enumerate(
        [
            replace(good, buffer_id=1 << 48 | 77),  # an id of instance 1
            replace(good, key=key_of("node", source=1)),
        ]
    ):
        world.inject(0, 1, Message(number, BUFFER, 0, 1, True, bad.pack()))
    world.run_for(0.1)
    assert world.endpoints[1].stats.messages_malformed == 2
    assert world.is_idle(1)


def test_accept_of_an_unknown_buffer_is_answered_with_cancel(world: World) -> None:
    accept = BufferAccept(123).pack()
    world.inject(1, 0, Message(1, MessageType.BUFFER_ACCEPT, 1, 0, True, accept))
    world.run_for(0.1)
    assert MessageType.BUFFER_CANCEL in world.sent_types(0)
