"""Whatever a connected peer sends: nothing is raised, it is counted, and memory stays bounded."""

from __future__ import annotations

import random
from typing import Any

import pytest

from comfy_cluster import wire
from comfy_cluster.protocol import Endpoint, MessageReceived
from comfy_cluster.wire import Message, MessageType
from tests.unit.protocol.fake_engine import key_of
from tests.unit.protocol.world import World


def count_kept(endpoint: Endpoint) -> int:
    """Objects that the endpoint keeps for its peers, whatever they are."""
    incoming = endpoint._incoming
    kept: list[Any] = [
        incoming._store,
        incoming._claims,
        incoming._ended_jobs,
        incoming._cancelled_early,
        endpoint._timers._heap,
        endpoint._outgoing,
        *(peer.outbox for peer in endpoint._connections.peers.values()),
        *(peer.inbox._seen for peer in endpoint._connections.peers.values()),
    ]
    return sum(len(item) for item in kept)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xff" * 100,
        Message(1, MessageType.ANNOUNCE, 1, 0).pack(),
        Message(1, MessageType.ACK, 1, 0).pack(),
        Message(1, MessageType.BUFFER_ACCEPT, 1, 0, True).pack(),
        Message(1, MessageType.DISTRIBUTE_BUFFER_GATHER, 1, 0, True, b"\x01").pack(),
        Message(1, MessageType.BUFFER_FAILED, 1, 0, True, b"\xff").pack(),
        Message(1, MessageType.GOODBYE, 1, 0, False, b"\x0a\x02\xff\xfe").pack(),
    ],
)
def test_malformed_message_is_counted_and_dropped(world: World, packed: bytes) -> None:
    world.engines[1].send_message(0, packed)
    world.run_for(0.05)
    assert world.endpoints[0].stats.messages_malformed == 1
    assert world.endpoints[0].is_connected(1)


def test_unknown_message_type_is_counted_and_dropped(world: World) -> None:
    packed = Message(1, MessageType.FREE_MEMORY, 1, 0).pack().replace(b"\x10\x26", b"\x10\x7b")
    world.engines[1].send_message(0, packed)
    world.run_for(0.05)
    assert world.endpoints[0].stats.messages_malformed == 1


@pytest.mark.parametrize(("sender", "target"), [(0, 0), (1, 1), (5, 0)])
def test_message_in_another_s_name_is_counted_and_dropped(
    world: World, sender: int, target: int
) -> None:
    world.inject(1, 0, Message(1, MessageType.FREE_MEMORY, sender, target, True))
    world.run_for(0.05)
    assert world.endpoints[0].stats.messages_misaddressed == 1
    assert not world.seen(0, MessageReceived)


def random_message(rng: random.Random) -> bytes:
    """Anything: well-formed with wild values, or damaged."""
    ids = [0, 1, 77, rng.getrandbits(48), 1 << 48 | rng.getrandbits(20), (1 << 64) - 1]
    buffer_id = rng.choice(ids) or 1
    size = rng.choice([0, 1, 900, 5_000, 1 << 40])
    inline = rng.randbytes(size) if size < 1_000 and rng.random() < 0.5 else None
    payloads = [
        wire.Ack(tuple(rng.choices(ids, k=3))).pack(),
        wire.BufferAccept(buffer_id).pack(),
        wire.BufferDone(buffer_id).pack(),
        wire.BufferFailed(buffer_id, rng.choice(list(wire.FailureCode)), "no").pack(),
        wire.BufferCancel(buffer_id, "no").pack(),
        wire.BufferAnnouncement(
            buffer_id,
            size,
            0 if inline is not None else rng.choice([1_148, 65_455]),
            rng.randbytes(16),
            key_of(f"n{rng.randrange(50)}", source=rng.choice([0, 1, 9])),
            inline,
            rng.choice([1, 2]),
        ).pack(),
        rng.randbytes(rng.randrange(50)),
    ]
    kinds = [kind for kind in MessageType if kind is not MessageType.GOODBYE]
    message = Message(
        rng.choice([rng.randrange(100), rng.getrandbits(64)]),
        rng.choice(kinds),
        1,
        0,
        rng.random() < 0.7,
        rng.choice(payloads),
    )
    packed = bytearray(message.pack())
    if rng.random() < 0.2:
        packed[rng.randrange(len(packed))] = rng.randrange(256)
    return bytes(packed[: 1_168 if rng.random() < 0.9 else rng.randrange(len(packed))])


@pytest.mark.parametrize("seed", range(5))
def test_wild_messages_raise_nothing_and_memory_stays_bounded(seed: int) -> None:
    rng = random.Random(seed)
    world = World(seed=seed)
    world.connect()
    world.send(0, 1, "mine", bytes(5_000))
    world.claim(0, "n1", source=1)
    for _ in range(3_000):
        world.engines[1].send_message(0, random_message(rng))
        if rng.random() < 0.05:
            world.run_for(0.006)
            world.events[0].clear()
            world.log.clear()
    world.run_for(1.0)
    assert world.endpoints[0].stats.messages_malformed > 100
    assert count_kept(world.endpoints[0]) < 20_000


def test_flood_of_announcements_keeps_a_bounded_number(world: World) -> None:
    for number in range(6_000):
        announcement = wire.BufferAnnouncement(
            1 << 48 | number + 1, 1 << 40, 65_455, bytes(16), key_of(f"n{number}", source=1)
        )
        world.inject(
            1,
            0,
            Message(number, MessageType.DISTRIBUTE_BUFFER_FANIN, 1, 0, True, announcement.pack()),
        )
        if number % 100 == 0:
            world.run_for(0.006)
            world.log.clear()
    world.run_for(1.0)
    assert len(world.endpoints[0]._incoming._store) == 4_096
    assert world.endpoints[0].stats.buffers_refused == 6_000 - 4_096
    assert world.bookkeeping(0)["incoming budget"] == 0
