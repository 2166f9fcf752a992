"""Buffers from announcement to release, on endpoints over fake engines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comfy_cluster.errors import (
    CorruptPayload,
    LocalProtocolError,
    TransferCancelled,
    TransferError,
    TransferTimeout,
)
from comfy_cluster.errors import PeerLost as PeerLostError
from comfy_cluster.protocol import (
    BufferArrived,
    BufferFailed,
    BufferSent,
    IncomingFailed,
)
from comfy_cluster.protocol.incoming_queue import LARGEST_OPEN, LARGEST_WAITING
from comfy_cluster.protocol.incoming_store import UNCLAIMED_TIMEOUT
from comfy_cluster.wire import (
    BufferAccept,
    BufferAnnouncement,
    Message,
    MessageType,
)
from tests.unit.protocol.fake_engine import World, key_of, payload_of

MEGABYTE = 1_000_000
BUFFER = MessageType.DISTRIBUTE_BUFFER_FANOUT


@pytest.fixture
def world() -> World:
    world = World()
    world.connect()
    return world


def confirm_all(world: World, index: int = 1) -> None:
    for event in world.seen(index, BufferArrived):
        world.endpoints[index].confirm_buffer(event.buffer_id, world.now)
    world.run_for(0.1)


def release_all(world: World, index: int = 1) -> None:
    for event in world.seen(index, BufferArrived):
        world.endpoints[index].release_buffer(event.buffer_id, world.now)
    world.run_for(0.1)


@pytest.mark.parametrize("size", [0, 1, 64, 900, 901, 5_000, MEGABYTE])
def test_payload_arrives_as_it_was_sent(world: World, size: int) -> None:
    content = bytes(number * 7 % 251 for number in range(min(size, 1_000))) * (size // 1_000 or 1)
    buffer_id = world.send(0, 1, "node", content)
    world.claim(1, "node")
    world.run_for(0.1)
    (arrived,) = world.seen(1, BufferArrived)
    assert arrived.key == key_of("node") and arrived.message_type is BUFFER
    assert bytes(arrived.memory)[: arrived.size] == content  # type: ignore[call-overload]
    assert arrived.digest == payload_of(content).digest()
    assert not world.seen(0, BufferSent)
    confirm_all(world)
    assert world.seen(0, BufferSent) == [BufferSent(buffer_id)]
    release_all(world)
    assert world.is_idle(0) and world.is_idle(1)


def test_small_payload_travels_inside_the_announcement(world: World) -> None:
    payload = payload_of(b"a" * 500, prefix_size=100)
    world.endpoints[0].send_buffer(
        1, key_of("node"), payload, digest=payload.digest(), message_type=BUFFER, now=world.now
    )
    world.run_for(0.1)
    assert bytes(world.arrived(1)["node"].memory) == b"a" * 500  # type: ignore[call-overload]
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
    assert {name: bytes(event.memory)[:1] for name, event in arrived.items()} == {  # type: ignore[call-overload]
        "a": b"a",
        "b": b"b",
        "c": b"c",
    }


# Memory


def test_queued_transfers_stay_within_the_budget(world: World) -> None:
    for number in range(10):
        world.send(0, 1, f"n{number}", bytes(MEGABYTE))
        world.claim(1, f"n{number}")
    largest = 0
    for _ in range(20):
        world.run_for(0.1)
        largest = max(largest, world.bookkeeping(1)["incoming budget"])
        confirm_all(world)
        release_all(world)
    assert 0 < largest <= 2 * MEGABYTE
    assert len(world.seen(0, BufferSent)) == 10
    assert world.is_idle(0) and world.is_idle(1)


def test_sender_keeps_to_its_half_of_the_budget(world: World) -> None:
    world.boot(1, memory_budget=100 * MEGABYTE)
    world.run_for(2.0)
    for number in range(10):
        world.send(0, 1, f"n{number}", bytes(MEGABYTE))
        world.claim(1, f"n{number}")
    world.run_for(1.0)
    assert len(world.seen(1, BufferArrived)) == 2
    assert world.bookkeeping(0)["outgoing budget"] == 2 * MEGABYTE
    for _ in range(10):
        confirm_all(world)
    assert len(world.seen(0, BufferSent)) == 10


def test_buffers_nobody_waits_for_use_at_most_half_and_claimed_ones_pass_them(
    world: World,
) -> None:
    for number in range(10):
        world.send(0, 1, f"n{number}", bytes(400_000))
    world.run_for(1.0)
    assert world.bookkeeping(1)["incoming budget"] == 800_000
    world.claim(1, "n9")
    world.run_for(0.1)
    assert set(world.arrived(1)) == {"n0", "n1", "n9"}


def test_buffer_larger_than_the_budget_is_taken_alone(world: World) -> None:
    world.send(0, 1, "large", bytes(5 * MEGABYTE))
    world.send(0, 1, "small", bytes(10_000))
    world.claim(1, "large")
    world.claim(1, "small")
    world.run_for(0.5)
    assert set(world.arrived(1)) == {"large"}
    confirm_all(world)
    release_all(world)
    assert set(world.arrived(1)) == {"large", "small"}


def test_two_instances_with_full_budgets_do_not_wait_for_each_other(world: World) -> None:
    for source in (0, 1):
        for number in range(4):
            world.send(source, 1 - source, f"n{number}", bytes(2 * MEGABYTE))
            world.claim(1 - source, f"n{number}", source=source)
    for _ in range(10):
        world.run_for(0.1)
        for index in (0, 1):
            confirm_all(world, index)
            release_all(world, index)
    assert len(world.seen(0, BufferSent)) == len(world.seen(1, BufferSent)) == 4


def test_claimed_buffer_passes_when_unclaimed_ones_fill_their_half(world: World) -> None:
    """The key that frees the unclaimed ones may depend on the claimed one."""
    world.send(0, 1, "unclaimed", bytes(MEGABYTE))
    world.run_for(0.1)
    confirm_all(world)
    world.send(0, 1, "claimed", bytes(2 * MEGABYTE))
    world.claim(1, "claimed")
    world.run_for(0.1)
    assert set(world.arrived(1)) == {"unclaimed", "claimed"}


def test_receiver_without_memory_fails_the_transfer_at_both_ends(world: World) -> None:
    def no_memory(size: int) -> bytearray:
        raise MemoryError

    world.endpoints[1]._incoming._store._allocate = no_memory
    world.claim(1, "node")
    world.send(0, 1, "node", bytes(5_000))
    world.run_for(0.1)
    (failed,) = world.seen(0, BufferFailed)
    assert isinstance(failed.error, TransferError) and "no memory" in str(failed.error)
    assert len(world.seen(1, IncomingFailed)) == 1
    assert world.is_idle(0) and world.is_idle(1)


def test_one_peer_with_many_buffers_receives_a_bounded_number_at_once() -> None:
    world = World(options={"memory_budget": 1 << 30})
    world.connect()
    world.is_lost = lambda packet: bool(packet.buffer_id)
    for number in range(3 * LARGEST_OPEN):
        world.claim(1, f"n{number}")
        world.send(0, 1, f"n{number}", bytes(1_000))
    world.run_for(1.0)
    assert len(world.engines[1].incoming) == LARGEST_OPEN


def test_announcements_that_wait_are_bounded_and_the_next_fails_clearly(world: World) -> None:
    count = LARGEST_WAITING + 3
    for number in range(count):
        world.send(0, 1, f"n{number}", bytes(MEGABYTE + 1))  # above what unclaimed ones may use
    world.run_for(10.0)
    assert len(world.endpoints[1]._incoming._store) == LARGEST_WAITING
    failed = world.seen(0, BufferFailed)
    assert len(failed) == 3 and "too many" in str(failed[0].error)


# Ends


def test_damaged_payload_is_sent_once_more(world: World) -> None:
    buffer_id = world.send(0, 1, "node", bytes(5_000))
    world.claim(1, "node")
    world.run_for(0.1)
    (first,) = world.seen(1, BufferArrived)
    assert world.endpoints[1].reject_buffer(first.buffer_id, "digest differs", world.now)
    world.run_for(0.1)
    _, second = world.seen(1, BufferArrived)
    assert second.buffer_id != first.buffer_id
    confirm_all(world)
    assert world.seen(0, BufferSent) == [BufferSent(buffer_id)]
    assert not world.seen(1, IncomingFailed)
    release_all(world)
    assert world.is_idle(0) and world.is_idle(1)


@pytest.mark.parametrize("size", [100, 5_000])
def test_payload_damaged_twice_fails_at_both_ends(world: World, size: int) -> None:
    buffer_id = world.send(0, 1, "node", bytes(size))
    world.claim(1, "node")
    for _ in range(2):
        world.run_for(0.1)
        last = world.seen(1, BufferArrived)[-1]
        world.endpoints[1].reject_buffer(last.buffer_id, "digest differs", world.now)
    world.run_for(0.1)
    (failed,) = world.seen(0, BufferFailed)
    assert failed.buffer_id == buffer_id and isinstance(failed.error, CorruptPayload)
    (incoming,) = world.seen(1, IncomingFailed)
    assert isinstance(incoming.error, CorruptPayload) and "2 times" in str(incoming.error)
    assert world.is_idle(0) and world.is_idle(1)


@pytest.mark.parametrize("when", [0.0, 0.006, 0.012, 0.018, 0.1])
def test_sender_can_cancel_at_any_moment(world: World, when: float) -> None:
    buffer_id = world.send(0, 1, "node", bytes(5_000))
    world.claim(1, "node")
    world.run_for(when)
    assert world.endpoints[0].cancel_buffer(buffer_id, world.now)
    assert not world.endpoints[0].cancel_buffer(buffer_id, world.now)
    assert not world.engines[0].outgoing
    world.run_for(0.5)
    (failed,) = world.seen(0, BufferFailed)
    assert isinstance(failed.error, TransferCancelled)
    assert world.is_idle(0)
    world.endpoints[1].unclaim(key_of("node"), world.now)
    assert world.is_idle(1)


def test_cancel_that_overtakes_its_announcement_wins(world: World) -> None:
    world.is_lost = lambda packet: packet.message_type is BUFFER
    buffer_id = world.send(0, 1, "node", bytes(5_000))
    world.run_for(0.0)
    announcement = next(p for p in world.log if p.message_type is BUFFER)
    world.endpoints[0].cancel_buffer(buffer_id, world.now)
    world.run_for(0.1)
    world.is_lost = lambda packet: False
    world.engines[0].sent.append(announcement)
    world.run_for(1.0)
    assert world.is_idle(1) and world.endpoints[1]._incoming._cancelled_early is not None
    assert not world.seen(1, BufferArrived)


def test_accept_of_a_buffer_that_was_given_up_frees_the_receiver(world: World) -> None:
    """Announced by something that is gone: nobody would ever send it."""
    announcement = BufferAnnouncement(77, 5_000, 1_000, bytes(16), key_of("node"))
    world.inject(0, 1, Message(1, BUFFER, 0, 1, True, announcement.pack()))
    world.claim(1, "node")
    world.run_for(0.1)
    (failed,) = world.seen(1, IncomingFailed)
    assert isinstance(failed.error, TransferCancelled)
    assert world.is_idle(1)


def test_arrived_buffer_of_a_lost_peer_can_still_be_had(world: World) -> None:
    world.send(0, 1, "node", bytes(5_000))
    world.run_for(0.1)
    world.kill(0)
    world.run_for(5.0)
    (arrived,) = world.seen(1, BufferArrived)
    assert world.endpoints[1].confirm_buffer(arrived.buffer_id, world.now)
    world.claim(1, "node")
    world.run_for(30.0)
    assert not world.seen(1, IncomingFailed)
    release_all(world)
    assert world.is_idle(1)


def test_buffer_that_nobody_comes_for_expires(world: World) -> None:
    world.send(0, 1, "node", bytes(5_000))
    world.run_for(0.1)
    confirm_all(world)
    world.run_for(UNCLAIMED_TIMEOUT - 1.0)
    assert not world.seen(1, IncomingFailed)
    world.run_for(1.1)
    (failed,) = world.seen(1, IncomingFailed)
    assert failed.buffer_id == world.arrived(1)["node"].buffer_id
    assert "nobody received" in str(failed.error)
    assert world.is_idle(1) and world.endpoints[1].stats.buffers_expired == 1


def test_claimed_buffer_does_not_expire_until_its_claim_is_taken_back(world: World) -> None:
    world.send(0, 1, "node", bytes(5_000))
    world.claim(1, "node")
    world.run_for(0.1)
    confirm_all(world)
    world.run_for(2 * UNCLAIMED_TIMEOUT)
    assert not world.seen(1, IncomingFailed)
    world.endpoints[1].unclaim(key_of("node"), world.now)
    world.run_for(UNCLAIMED_TIMEOUT + 0.1)
    assert len(world.seen(1, IncomingFailed)) == 1
    assert world.is_idle(1)


def test_end_of_a_job_ends_all_of_its_transfers_and_no_other(world: World) -> None:
    for job in ("old", "other"):
        world.send(0, 1, "arrived", bytes(5_000), job)
        world.send(0, 1, "waits", bytes(MEGABYTE + 1), job)
        world.claim(1, "never sent", job=job)
    world.run_for(0.1)
    confirm_all(world)
    world.endpoints[1].end_job("old", world.now)
    world.run_for(0.1)
    failed = world.seen(1, IncomingFailed)
    assert {(event.key.node_id, event.buffer_id is None) for event in failed} == {
        ("arrived", False),
        ("never sent", True),
    }
    assert {event.key.job_id for event in failed} == {"old"}
    (at_sender,) = world.seen(0, BufferFailed)
    assert "job old has ended" in str(at_sender.error)
    assert len(world.endpoints[1]._incoming._store) == 2


def test_buffer_of_a_job_that_has_ended_is_refused(world: World) -> None:
    world.endpoints[1].end_job("job", world.now)
    world.send(0, 1, "late", bytes(5_000))
    world.run_for(0.1)
    (failed,) = world.seen(0, BufferFailed)
    assert isinstance(failed.error, TransferCancelled)
    assert world.is_idle(1)


def test_end_of_a_job_cancels_what_this_instance_sends(world: World) -> None:
    world.send(0, 1, "node", bytes(MEGABYTE + 1))
    world.run_for(0.1)
    world.endpoints[0].end_job("job", world.now)
    world.run_for(0.1)
    assert isinstance(world.seen(0, BufferFailed)[0].error, TransferCancelled)
    assert world.is_idle(0) and world.is_idle(1)


def test_closing_fails_everything_that_is_under_way(world: World) -> None:
    endpoint = world.endpoints[0]
    world.send(0, 1, "node", bytes(5_000))
    world.claim(0, "node", source=1)
    endpoint.send_message(1, MessageType.FREE_MEMORY, bytes(5_000), now=world.now)
    endpoint.send_message(1, MessageType.FREE_MEMORY, b"", now=world.now)
    endpoint.close(world.now)
    endpoint.close(world.now)
    world.run_for(0.1)
    errors = [event.error for event in world.events[0] if hasattr(event, "error")]
    assert len(errors) == 4
    assert all(isinstance(error, TransferCancelled) for error in errors)
    assert world.is_idle(0) and endpoint.next_timer() is None
    with pytest.raises(LocalProtocolError, match="closing"):
        world.send(0, 1, "late", b"")


def test_thousands_of_transfers_leave_nothing_behind(world: World) -> None:
    for number in range(3_000):
        name = f"n{number}"
        if number % 3 == 0:
            world.claim(1, name)
        buffer_id = world.send(0, 1, name, bytes(2_000 if number % 2 else 10))
        if number % 7 == 0:
            world.endpoints[0].cancel_buffer(buffer_id, world.now)
        world.run_for(0.03)
        for event in world.seen(1, BufferArrived):
            world.endpoints[1].confirm_buffer(event.buffer_id, world.now)
            world.endpoints[1].release_buffer(event.buffer_id, world.now)
        world.endpoints[1].unclaim(key_of(name), world.now)
        world.events[1].clear()
        world.log.clear()
    world.run_for(1.0)
    assert world.is_idle(0) and world.is_idle(1)
    assert len(world.endpoints[0]._timers) <= 2


# Misuse


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
    good = BufferAnnouncement(77, 5_000, 1_000, bytes(16), key_of("node"))
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
