"""STUN packets among the engine's own: handed up when they are waited for, and few at a time."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest

from tests import packets
from tests.engine_instance import Run, Scenario, Transfer, address_of, connect
from tests.simnet import Address, Link

SERVER: Address = ("203.0.113.5", 3478)
OTHER: Address = ("2001:db8::66", 666)
ID = bytes(range(1, 13))
OTHER_ID = bytes(range(12, 0, -1))
QUEUE_LIMIT = 16
LARGEST = 548


def asking(engine: ModuleType, *transaction_ids: bytes) -> Any:
    core = engine.PacketEngine()
    connect(core, 1)
    for transaction_id in transaction_ids:
        core.expect_stun(transaction_id)
    return core


def test_answer_that_is_waited_for_is_handed_up_with_its_source(engine: ModuleType) -> None:
    core = asking(engine, ID)
    answers = [packets.stun(ID, bytes(size)) for size in (0, 12, LARGEST - 20)]
    for answer in answers:
        core.receive_packet(answer, SERVER, 1.0)
    core.receive_packet(answers[0], OTHER, 1.0)
    assert core.take_events() == [
        *((engine.EVENT_STUN, SERVER, answer) for answer in answers),
        (engine.EVENT_STUN, OTHER, answers[0]),
    ]
    assert not any(core.stats().values())


def test_nothing_is_handed_up_that_nobody_waits_for(engine: ModuleType) -> None:
    core = asking(engine)
    core.receive_packet(packets.stun(ID), SERVER, 1.0)
    core.expect_stun(ID)
    core.receive_packet(packets.stun(OTHER_ID), SERVER, 1.0)
    core.forget_stun(ID)
    core.forget_stun(ID)
    core.forget_stun(b"")
    core.receive_packet(packets.stun(ID), SERVER, 1.0)
    assert core.take_events() == []
    assert core.stats() == dict.fromkeys(engine.COUNTERS, 0) | {"malformed": 3}


@pytest.mark.parametrize("kind", [0x0000, 0x0001, 0x0011, 0x0111, 0x03FF])
def test_every_kind_of_stun_message_passes(engine: ModuleType, kind: int) -> None:
    core = asking(engine, ID)
    core.receive_packet(packets.stun(ID, kind=kind), SERVER, 1.0)
    assert len(core.take_events()) == 1


HOSTILE = {
    "first byte of another protocol": packets.stun(ID, kind=0x0401),
    "first byte of ours": packets.stun(ID, kind=0xC001),
    "a request of an unknown kind of ours": packets.stun(ID, kind=0xFF01),
    "no cookie": packets.stun(ID, cookie=0x2112A443),
    "cut header": packets.stun(ID)[:19],
    "cookie only": packets.stun(ID)[:8],
    "empty": b"",
    "too long": packets.stun(ID, bytes(LARGEST - 19)),
    "far too long": packets.stun(ID, bytes(60_000)),
    "another id": packets.stun(ID[:11] + b"\0"),
    "id elsewhere": packets.stun(bytes(12), ID),
    "part of the id": packets.stun(ID[1:] + ID[:1]),
}


@pytest.mark.parametrize("packet", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_packets_are_malformed(engine: ModuleType, packet: bytes) -> None:
    core = asking(engine, ID, OTHER_ID)
    core.receive_packet(packet, SERVER, 1.0)
    assert core.take_events() == []
    assert core.stats()["malformed"] == 1


def test_hello_is_a_hello_whatever_it_carries(engine: ModuleType) -> None:
    core = asking(engine, ID)
    core.allow_address(SERVER)
    core.receive_packet(packets.hello(packets.stun(ID)), SERVER, 1.0)
    assert core.take_events() == [(engine.EVENT_HELLO, SERVER, packets.stun(ID))]


def test_few_are_kept_and_the_rest_is_counted(engine: ModuleType) -> None:
    core = asking(engine, ID)
    for _ in range(1000):
        core.receive_packet(packets.stun(ID, bytes(LARGEST - 20)), SERVER, 1.0)
    core.receive_packet(packets.message(11, 0, b"still heard"), address_of(1), 1.0)
    assert core.stats()["stun_dropped"] == 1000 - QUEUE_LIMIT
    events = core.take_events()
    assert [event[0] for event in events] == [
        *[engine.EVENT_STUN] * QUEUE_LIMIT,
        engine.EVENT_MESSAGE,
    ]
    core.receive_packet(packets.stun(ID), SERVER, 1.0)
    assert len(core.take_events()) == 1, "there is room again once they are taken"


def test_no_room_beside_messages_that_nobody_takes(engine: ModuleType) -> None:
    core = asking(engine, ID)
    counter = 0
    while not core.stats()["messages_dropped"]:
        core.receive_packet(packets.message(11, counter, bytes(1168)), address_of(1), 1.0)
        counter += 1
    for _ in range(2 * QUEUE_LIMIT):
        core.receive_packet(packets.stun(ID, bytes(LARGEST - 20)), SERVER, 1.0)
    stats = core.stats()
    assert stats["messages_dropped"] + stats["stun_dropped"] > QUEUE_LIMIT
    assert sum(event[0] == engine.EVENT_STUN for event in core.take_events()) <= QUEUE_LIMIT


def test_so_many_transactions_and_no_more(engine: ModuleType) -> None:
    core = engine.PacketEngine()
    ids = [bytes([number] * 12) for number in range(engine.MAX_STUN_TRANSACTIONS + 1)]
    for transaction_id in ids[:-1]:
        core.expect_stun(transaction_id)
        core.expect_stun(transaction_id)
    with pytest.raises(ValueError, match="waited for already"):
        core.expect_stun(ids[-1])
    core.forget_stun(ids[0])
    core.expect_stun(ids[-1])
    for transaction_id in ids:
        core.receive_packet(packets.stun(transaction_id), SERVER, 1.0)
    assert [event[2] for event in core.take_events()] == [packets.stun(each) for each in ids[1:]]


@pytest.mark.parametrize("size", [0, 11, 13])
def test_transaction_id_of_another_size_is_refused(engine: ModuleType, size: int) -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        engine.PacketEngine().expect_stun(bytes(size))


def test_asking_sends_nothing_and_sets_no_timer(engine: ModuleType) -> None:
    core = asking(engine, ID)
    core.receive_packet(packets.stun(ID), SERVER, 1.0)
    assert core.packets_to_send(1.0) == []
    assert core.next_timer() is None


@pytest.mark.parametrize("seed", range(5))
def test_transfers_go_on_beside_a_flood(engine: ModuleType, seed: int) -> None:
    """Ten STUN packets for each real one, half of them waited for: same packets, same time."""
    rng = random.Random(seed)
    quiet, flooded = (
        Run(engine, Scenario(seed, Link(delay=0.005, loss=0.02), transfers(200_000)))
        for _ in range(2)
    )
    for run in (quiet, flooded):
        for transfer in run.scenario.transfers:
            run.start(transfer)
    for instance in flooded.instances:
        instance.core.expect_stun(ID)
    handed_up = 0
    while flooded.network.step() and flooded.network.now < 30.0:
        for instance in flooded.instances:
            for _ in range(5):
                source = rng.choice([SERVER, address_of(0), address_of(1)])
                for transaction_id in (ID, OTHER_ID):
                    instance.core.receive_packet(
                        packets.stun(transaction_id, rng.randbytes(12)),
                        source,
                        flooded.network.now,
                    )
            taken = instance.core.take_events()
            handed_up += sum(event[0] == engine.EVENT_STUN for event in taken)
            instance.events += [event for event in taken if event[0] != engine.EVENT_STUN]
    quiet.network.run_for(30.0)
    flooded.check()
    assert handed_up > 1000
    for ours, theirs in zip(quiet.instances, flooded.instances, strict=True):
        assert ours.events == theirs.events
    for index in (0, 1):
        assert (
            quiet.instances[index].core.peer_stats(1 - index)["chunks_sent"]
            == flooded.instances[index].core.peer_stats(1 - index)["chunks_sent"]
        )


def transfers(size: int) -> tuple[Transfer, ...]:
    return (Transfer(0, 1, buffer_id=7, size=size), Transfer(1, 0, buffer_id=8, size=size // 2))
