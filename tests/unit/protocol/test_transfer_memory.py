"""The memory budget of transfers, on endpoints over fake engines."""

from __future__ import annotations

import pytest

from comfy_cluster.errors import (
    TransferError,
)
from comfy_cluster.protocol import (
    BufferArrived,
    BufferFailed,
    BufferSent,
    IncomingFailed,
)
from comfy_cluster.protocol.incoming_queue import LARGEST_OPEN, LARGEST_WAITING
from comfy_cluster.protocol.incoming_store import LARGEST_UNCLAIMED
from comfy_cluster.wire import MessageType
from tests.unit.protocol.fake_engine import key_of, payload_of
from tests.unit.protocol.world import World

MEGABYTE = 1_000_000


def test_queued_transfers_stay_within_the_budget(world: World) -> None:
    for number in range(10):
        world.send(0, 1, f"n{number}", bytes(MEGABYTE))
        world.claim(1, f"n{number}")
    largest = 0
    for _ in range(20):
        world.run_for(0.1)
        largest = max(largest, world.bookkeeping(1)["incoming budget"])
        world.confirm_all()
        world.release_all()
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
        world.confirm_all()
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
    world.confirm_all()
    world.release_all()
    assert set(world.arrived(1)) == {"large", "small"}


def test_payload_that_is_sent_again_passes_what_took_its_memory_meanwhile(world: World) -> None:
    """Whoever has that one may hold it until the first is there too."""
    for name in ("first", "second"):
        world.send(0, 1, name, bytes(3 * MEGABYTE // 2))
        world.claim(1, name)
    world.run_for(0.5)
    (first,) = world.seen(1, BufferArrived)
    assert world.endpoints[1].reject_buffer(first.buffer_id, "damaged", world.now)
    world.run_for(0.5)
    second = world.arrived(1)["second"]
    assert world.endpoints[1].confirm_buffer(second.buffer_id, world.now)
    world.run_for(0.5)
    assert [event.key.node_id for event in world.seen(1, BufferArrived)] == [
        "first",
        "second",
        "first",
    ]
    world.confirm_all()
    world.release_all()
    assert world.is_idle(0) and world.is_idle(1)


def test_payload_whose_relay_is_lost_passes_what_took_its_memory_meanwhile() -> None:
    world = World(3, options={"memory_budget": 4 * MEGABYTE})
    world.connect()
    for index, name in ((2, "first"), (2, "second"), (1, "first")):
        world.claim(index, name)
    world.is_lost = lambda packet: packet.source == 1 and packet.buffer_id != 0
    payload = payload_of(bytes(3 * MEGABYTE // 2))
    world.endpoints[0].send_chain(
        [1, 2],
        key_of("first", 0),
        payload,
        digest=payload.digest(),
        message_type=MessageType.DISTRIBUTE_BUFFER_BROADCAST,
        now=world.now,
    )
    world.run_for(0.1)
    world.send(0, 2, "second", bytes(3 * MEGABYTE // 2))
    world.run_for(0.1)
    assert not world.arrived(2)
    world.kill(1)
    world.run_for(60.0)
    world.confirm_all(2)  # and held, by who waits for the first
    world.run_for(60.0)
    assert "first" in world.arrived(2)
    world.release_all(2)
    world.run_for(60.0)
    assert set(world.arrived(2)) == {"first", "second"}


def test_two_instances_with_full_budgets_do_not_wait_for_each_other(world: World) -> None:
    for source in (0, 1):
        for number in range(4):
            world.send(source, 1 - source, f"n{number}", bytes(2 * MEGABYTE))
            world.claim(1 - source, f"n{number}", source=source)
    for _ in range(10):
        world.run_for(0.1)
        for index in (0, 1):
            world.confirm_all(index)
            world.release_all(index)
    assert len(world.seen(0, BufferSent)) == len(world.seen(1, BufferSent)) == 4


def test_claimed_buffer_passes_when_unclaimed_ones_fill_their_half(world: World) -> None:
    """The key that frees the unclaimed ones may depend on the claimed one."""
    world.send(0, 1, "unclaimed", bytes(MEGABYTE))
    world.run_for(0.1)
    world.confirm_all()
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


@pytest.mark.parametrize("error", [MemoryError(), ValueError("no such layout")])
def test_engine_that_cannot_open_a_buffer_fails_the_transfer_at_both_ends(
    world: World, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    world.engines[1].open_incoming = fail  # type: ignore[method-assign]
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


@pytest.mark.parametrize("size", [0, 10])
def test_small_buffers_that_nobody_asked_for_are_bounded_claimed_ones_are_not(
    world: World, size: int
) -> None:
    """They travel in their announcements, and fit every budget."""
    for number in range(LARGEST_UNCLAIMED + 3):
        world.send(0, 1, f"n{number}", bytes(size))
    world.run_for(10.0)
    assert len(world.endpoints[1]._incoming._store) == LARGEST_UNCLAIMED
    failed = world.seen(0, BufferFailed)
    assert len(failed) == 3 and "nobody asked for" in str(failed[0].error)
    world.claim(1, "claimed")
    world.send(0, 1, "claimed", bytes(size))
    world.run_for(0.1)
    assert "claimed" in world.arrived(1)
    world.claim(1, "n0")  # it makes room for one more
    world.send(0, 1, "one more", bytes(size))
    world.send(0, 1, "too many", bytes(size))
    world.run_for(0.1)
    assert "one more" in world.arrived(1) and "too many" not in world.arrived(1)
    world.endpoints[1].end_job("job", world.now)


def test_announcements_that_wait_are_bounded_and_the_next_fails_clearly() -> None:
    world = World(options={"memory_budget": 4_000})
    world.connect()
    for number in range(LARGEST_WAITING + 3):
        world.send(0, 1, f"n{number}", bytes(1_001))  # above what unclaimed ones may use
    world.run_for(10.0)
    assert len(world.endpoints[1]._incoming._store) == LARGEST_WAITING
    failed = world.seen(0, BufferFailed)
    assert len(failed) == 3 and "too many" in str(failed[0].error)
