"""How transfers end when they do not succeed at once, on endpoints over fake engines."""

from __future__ import annotations

import pytest

from comfy_cluster.errors import (
    CorruptPayload,
    LocalProtocolError,
    TransferCancelled,
    TransferTimeout,
)
from comfy_cluster.fastpath import EVENT_PACKET_SIZE
from comfy_cluster.protocol import (
    BufferArrived,
    BufferFailed,
    BufferSent,
    IncomingFailed,
)
from comfy_cluster.protocol.incoming_store import UNCLAIMED_TIMEOUT
from comfy_cluster.wire import (
    BufferAnnouncement,
    Message,
    MessageType,
)
from tests.unit.protocol.fake_engine import key_of
from tests.unit.protocol.world import World

MEGABYTE = 1_000_000
BUFFER = MessageType.DISTRIBUTE_BUFFER_FANOUT


def test_damaged_payload_is_sent_once_more(world: World) -> None:
    buffer_id = world.send(0, 1, "node", bytes(5_000))
    world.claim(1, "node")
    world.run_for(0.1)
    (first,) = world.seen(1, BufferArrived)
    assert world.endpoints[1].reject_buffer(first.buffer_id, "digest differs", world.now)
    world.run_for(0.1)
    _, second = world.seen(1, BufferArrived)
    assert second.buffer_id != first.buffer_id
    world.confirm_all()
    assert world.seen(0, BufferSent) == [BufferSent(buffer_id)]
    assert not world.seen(1, IncomingFailed)
    world.release_all()
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
    assert isinstance(incoming.error, CorruptPayload) and "attempt 2" in str(incoming.error)
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
    assert world.is_idle(1) and world.endpoints[1].stats.messages_received > 0
    assert not world.seen(1, BufferArrived)


def test_accept_of_a_buffer_that_was_given_up_frees_the_receiver(world: World) -> None:
    """Announced by something that is gone: nobody would ever send it."""
    announcement = BufferAnnouncement(77, 5_000, 1_148, bytes(16), key_of("node"))
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
    world.release_all()
    assert world.is_idle(1)


def test_damaged_buffer_of_a_lost_peer_fails_at_once(world: World) -> None:
    world.claim(1, "node")
    world.send(0, 1, "node", bytes(5_000))
    world.run_for(0.1)
    world.kill(0)
    world.run_for(5.0)
    (arrived,) = world.seen(1, BufferArrived)
    assert world.endpoints[1].reject_buffer(arrived.buffer_id, "digest differs", world.now)
    world.run_for(0.1)
    (failed,) = world.seen(1, IncomingFailed)
    assert isinstance(failed.error, CorruptPayload) and "sender is gone" in str(failed.error)
    assert world.is_idle(1)


def patient_world() -> World:
    """Hours pass quickly in it: its heartbeats are rare."""
    world = World(options={"heartbeat_interval": 900.0, "instance_timeout": 3_600.0})
    world.connect()
    return world


def test_buffer_that_nobody_comes_for_expires() -> None:
    world = patient_world()
    world.send(0, 1, "node", bytes(5_000))
    world.run_for(0.1)
    world.confirm_all()
    world.run_for(UNCLAIMED_TIMEOUT - 1.0)
    assert not world.seen(1, IncomingFailed)
    world.run_for(1.1)
    (failed,) = world.seen(1, IncomingFailed)
    assert failed.buffer_id == world.arrived(1)["node"].buffer_id
    assert "nobody had asked for it" in str(failed.error)
    assert world.is_idle(1) and world.endpoints[1].stats.buffers_expired == 1


def test_claim_of_an_expired_buffer_fails_at_once_until_its_job_ends_or_it_comes_again() -> None:
    world = patient_world()
    for name in ("again", "ended"):
        world.send(0, 1, name, bytes(5_000), job=name)
    world.run_for(0.1)
    world.confirm_all()
    world.run_for(UNCLAIMED_TIMEOUT + 1.0)
    world.events[1].clear()
    for name in ("again", "ended"):
        world.claim(1, name, job=name)
    world.run_for(0.0)
    failed = world.seen(1, IncomingFailed)
    assert [event.key.node_id for event in failed] == ["again", "ended"]
    assert all(isinstance(event.error, TransferTimeout) for event in failed)
    assert "arrived, and was dropped" in str(failed[0].error)
    assert world.is_idle(1)
    world.endpoints[1].end_job("ended", world.now)
    world.claim(1, "ended", job="ended")
    world.send(0, 1, "again", bytes(5_000), job="again")
    world.run_for(0.1)
    world.claim(1, "again", job="again")
    world.run_for(0.1)
    assert len(world.seen(1, IncomingFailed)) == 2
    assert set(world.arrived(1)) == {"again"}


def test_claimed_buffer_does_not_expire_until_its_claim_is_taken_back() -> None:
    world = patient_world()
    world.send(0, 1, "node", bytes(5_000))
    world.claim(1, "node")
    world.run_for(0.1)
    world.confirm_all()
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
    world.confirm_all()
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
    for number in range(1_200):
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


@pytest.mark.parametrize("size", [100, 50_000])
def test_a_path_may_shrink_before_the_sender_is_told(world: World, size: int) -> None:
    """The engine's loops find out by themselves; its event comes after the receiver's answer."""
    engine = world.engines[0]

    def set_size(packet_size: int) -> None:
        engine.peers[1].packet_size = packet_size

    set_size(9_000)
    engine.events.append((EVENT_PACKET_SIZE, 1, 9_000))
    world.run_for(0.01)
    content = bytes(size)
    transfer = world.send(0, 1, "node", content)
    world.claim(1, "node")
    set_size(1_200)
    world.run_for(0.1)
    engine.events.append((EVENT_PACKET_SIZE, 1, 1_200))
    world.run_for(0.1)
    (arrived,) = world.seen(1, BufferArrived)
    assert bytes(arrived.memory)[: arrived.size] == content
    world.confirm_all()
    assert world.seen(0, BufferSent) == [BufferSent(transfer)]
    world.release_all()
    assert world.is_idle(0) and world.is_idle(1)
