"""Hostile packets: counted, dropped, without exception, without memory, without effect."""

from __future__ import annotations

import gc
import random
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import packets
from tests.engine_instance import GUARD, Run, Scenario, Transfer, address_of, run_scenario
from tests.engines import COMPILED, PYTHON, load_engine
from tests.hostile import Target, mutated, nasty_packets
from tests.simnet import Address, Link

PEER: Address = ("10.0.0.2", 9998)
STRANGER: Address = ("10.66.6.6", 666)
CHUNK_SIZE, CHUNK_COUNT = 400, 100
TARGET = Target(session=77, buffer_id=5, chunk_count=CHUNK_COUNT, chunk_size=CHUNK_SIZE)


def victim(engine: ModuleType) -> tuple[Any, bytearray]:
    """An engine in the middle of receiving one buffer and sending another."""
    core = engine.PacketEngine()
    core.allow_address(PEER)
    core.connect_peer(
        1, PEER, local_session=TARGET.session, remote_session=88, packet_size=1200, now=0.0
    )
    size = CHUNK_SIZE * CHUNK_COUNT
    memory = bytearray(GUARD + bytes(size) + GUARD)
    view = memoryview(memory)[len(GUARD) : len(GUARD) + size]
    core.open_incoming(1, TARGET.buffer_id, view, size=size, chunk_size=CHUNK_SIZE)
    core.open_outgoing(1, 9, b"", bytes(50_000), chunk_size=1000)
    assert core.packets_to_send(0.0)
    return core, memory


@pytest.mark.parametrize("seed", range(20))
def test_each_nasty_packet_is_counted_once_and_changes_nothing(
    engine: ModuleType, seed: int
) -> None:
    core, memory = victim(engine)
    before, memory_before = core.peer_stats(1), bytes(memory)
    nasty = nasty_packets(random.Random(seed), TARGET, count=500)
    for number, packet in enumerate(nasty):
        core.receive_packet(packet, PEER, 0.01)
        assert sum(core.stats().values()) == number + 1, packet.hex()
    assert core.take_events() == []
    assert core.peer_stats(1) == before
    assert memory == memory_before
    assert core.packets_to_send(0.01) == []


@pytest.mark.parametrize("seed", range(20))
def test_mutated_packets_of_a_real_transfer_touch_nothing_outside(
    engine: ModuleType, seed: int
) -> None:
    """Every real packet arrives three times, twice of them damaged; the guards stay."""
    rng = random.Random(seed)
    run = Run(engine, Scenario(seed, Link(delay=0.01), ()))
    run.start(Transfer(0, 1, buffer_id=7, size=20_000))
    run.start(Transfer(1, 0, buffer_id=8, size=20_000))
    for instance, source in ((0, 1), (1, 0)):
        core = run.instances[instance].core
        honest = core.receive_packet
        for _, packet in run.instances[source].core.packets_to_send(0.0):
            for damaged in (mutated(rng, packet), mutated(rng, packet), packet):
                honest(damaged, address_of(source), 0.005)
                honest(damaged, STRANGER, 0.005)
        assert sum(core.stats().values()) > 0
    run.network.run_for(1.0)
    for memory in run.memories.values():
        assert memory[: len(GUARD)] == GUARD
        assert memory[-len(GUARD) :] == GUARD


@pytest.mark.parametrize("seed", range(10))
def test_damaged_network_raises_nothing_and_touches_nothing_outside(
    engine: ModuleType, seed: int
) -> None:
    link = Link(delay=0.01, jitter=0.01, corruption=0.3, truncation=0.1, duplication=0.3, loss=0.1)
    run = Run(engine, Scenario(seed, link, ()))
    for number in range(4):
        run.start(Transfer(number % 2, 1 - number % 2, buffer_id=number, size=30_000))
    run.network.run_for(20.0)
    for memory in run.memories.values():
        assert memory[: len(GUARD)] == GUARD
        assert memory[-len(GUARD) :] == GUARD
    totals = sum((Counter(instance.core.stats()) for instance in run.instances), Counter())
    assert totals["malformed"] and totals["bad_chunk"] and totals["replayed"]


def recorded_run(engine: ModuleType, seed: int) -> tuple[Run, list[tuple[int, Address, bytes]]]:
    """A finished transfer in both directions, and every packet that arrived, with its target."""
    transfers = (Transfer(0, 1, buffer_id=1, size=60_000), Transfer(1, 0, 2, size=30_000))
    run = Run(engine, Scenario(seed, Link(delay=0.01, loss=0.05), transfers))
    arrived: list[tuple[int, Address, bytes]] = []
    for index, instance in enumerate(run.instances):
        instance.core.send_message(1 - index, b"hello")
        original = instance.receive_packet

        def record(
            packet: bytes,
            address: Address,
            now: float,
            index: int = index,
            original: Any = original,
        ) -> None:
            arrived.append((index, address, packet))
            original(packet, address, now)

        instance.receive_packet = record  # type: ignore[method-assign]
    for transfer in transfers:
        run.start(transfer)
    run.network.run_until(lambda: min(len(i.events) for i in run.instances) >= 3, time_limit=30.0)
    run.network.run_for(10.0)
    return run, arrived


@pytest.mark.parametrize("seed", range(5))
def test_replayed_transfer_changes_nothing(engine: ModuleType, seed: int) -> None:
    run, arrived = recorded_run(engine, seed)
    memories = {key: bytes(memory) for key, memory in run.memories.items()}
    stats = [instance.core.peer_stats(1 - n) for n, instance in enumerate(run.instances)]
    events = [list(instance.events) for instance in run.instances]
    counts = [instance.core.stats()["replayed"] for instance in run.instances]
    random.Random(seed).shuffle(arrived)
    for index, address, packet in arrived:
        run.instances[index].core.receive_packet(packet, address, run.network.now)
    for index, instance in enumerate(run.instances):
        replays = sum(target == index for target, _, _ in arrived)
        assert instance.core.stats()["replayed"] == counts[index] + replays
        assert instance.core.peer_stats(1 - index) == stats[index]
        assert instance.events == events[index]
        assert instance.next_timer() is None
    assert {key: bytes(memory) for key, memory in run.memories.items()} == memories


def test_each_replay_is_counted(engine: ModuleType) -> None:
    core, _ = victim(engine)
    for counter in range(100):
        core.receive_packet(packets.message(TARGET.session, counter, b"x"), PEER, 0.0)
    for counter in range(100):
        core.receive_packet(packets.message(TARGET.session, counter, b"x"), PEER, 0.0)
    assert core.stats()["replayed"] == 100
    assert len(core.take_events()) == 100


def test_refused_packet_does_not_use_up_its_counter(engine: ModuleType) -> None:
    """Else a forged chunk would make the true packet of that counter look replayed."""
    core, _ = victim(engine)
    bad = packets.chunk(
        TARGET.session, 3, buffer_id=99, chunk_index=0, total_chunks=1, chunk_size=5, data=b"xxxxx"
    )
    core.receive_packet(bad, PEER, 0.0)
    core.receive_packet(packets.message(TARGET.session, 3, b"true"), PEER, 0.0)
    assert core.stats()["unknown_buffer"] == 1
    assert core.take_events() == [(engine.EVENT_MESSAGE, 1, b"true")]


def test_forged_sack_of_packets_never_sent_frees_nothing(engine: ModuleType) -> None:
    core, _ = victim(engine)
    sent = core.peer_stats(1)["packets_sent"]
    flight = core.peer_stats(1)["bytes_in_flight"]
    for number, largest in enumerate([sent, sent + 1, 2**32, 2**62, 2**63, 2**64 - 1]):
        forged = packets.sack(TARGET.session, number, {largest})
        core.receive_packet(forged, PEER, 0.01)
    assert core.stats()["bad_sack"] == 6
    assert core.peer_stats(1)["bytes_in_flight"] == flight
    assert core.take_events() == []


def test_sack_from_another_peer_or_address_frees_nothing(engine: ModuleType) -> None:
    core, _ = victim(engine)
    other: Address = ("10.0.0.3", 9998)
    core.connect_peer(2, other, local_session=99, remote_session=100, packet_size=1200, now=0.0)
    flight = core.peer_stats(1)["bytes_in_flight"]
    core.receive_packet(packets.sack(TARGET.session, 1, {0, 1}), other, 0.01)
    core.receive_packet(packets.sack(99, 1, {0, 1}), other, 0.01)
    assert core.stats()["wrong_address"] == 1
    assert core.stats()["bad_sack"] == 1
    assert core.peer_stats(1)["bytes_in_flight"] == flight


def test_chunk_from_another_peer_does_not_enter_the_buffer(engine: ModuleType) -> None:
    core, memory = victim(engine)
    other: Address = ("10.0.0.3", 9998)
    core.connect_peer(2, other, local_session=99, remote_session=100, packet_size=1200, now=0.0)
    before = bytes(memory)
    forged = packets.chunk(
        99,
        1,
        buffer_id=TARGET.buffer_id,
        chunk_index=0,
        total_chunks=CHUNK_COUNT,
        chunk_size=CHUNK_SIZE,
        data=b"x" * CHUNK_SIZE,
    )
    core.receive_packet(forged, other, 0.01)
    assert core.stats()["unknown_buffer"] == 1
    assert memory == before


def test_sack_with_absurd_delay_and_window_is_bounded(engine: ModuleType) -> None:
    """Both come from the peer: the delay is believed up to a limit, the window never closes."""
    core, _ = victim(engine)
    core.receive_packet(
        packets.sack(TARGET.session, 1, {0}, ack_delay_us=2**32 - 1, receive_window=0), PEER, 0.05
    )
    stats = core.peer_stats(1)
    assert stats["receive_window"] == 65_536
    assert 0.025 <= stats["smoothed_rtt"] <= 0.05


def test_messages_that_nobody_takes_are_bounded(engine: ModuleType) -> None:
    core, _ = victim(engine)
    payload = bytes(1168)
    for counter in range(10_000):
        core.receive_packet(packets.message(TARGET.session, counter, payload), PEER, 0.0)
    kept = core.take_events()
    assert sum(len(event[2]) for event in kept) <= 4 << 20
    assert core.stats()["messages_dropped"] == 10_000 - len(kept)
    core.receive_packet(packets.message(TARGET.session, 10_000, payload), PEER, 0.0)
    assert len(core.take_events()) == 1


def test_dropped_message_may_come_again(engine: ModuleType) -> None:
    """A message that found no room is not recorded as received."""
    core, _ = victim(engine)
    payload = bytes(1168)
    counter = 0
    while not core.stats()["messages_dropped"]:
        core.receive_packet(packets.message(TARGET.session, counter, payload), PEER, 0.0)
        counter += 1
    core.take_events()
    core.receive_packet(packets.message(TARGET.session, counter - 1, payload), PEER, 0.0)
    assert len(core.take_events()) == 1


def test_empty_hellos_are_bounded_too(engine: ModuleType) -> None:
    core, _ = victim(engine)
    for _ in range(300_000):
        core.receive_packet(packets.hello(b""), PEER, 0.0)
    assert len(core.take_events()) <= (4 << 20) // 16
    assert core.stats()["messages_dropped"] > 0


def test_transfer_goes_on_through_a_flood(engine: ModuleType) -> None:
    """Ten nasty packets for every real one, at both ends."""
    rng = random.Random(3)
    scenario = Scenario(3, Link(delay=0.005), (Transfer(0, 1, buffer_id=7, size=200_000),))
    run = Run(engine, scenario)
    run.start(scenario.transfers[0])
    chunk_size = engine.chunk_size_for(1200)
    count = -(-200_000 // chunk_size)
    floods = [
        nasty_packets(rng, Target(session, 7, count, chunk_size), count=200)
        for session in (101, 200)
    ]
    while not run.instances[0].events:
        assert run.network.step() and run.network.now < 5.0
        for index in (0, 1):
            for packet in rng.sample(floods[index], 10):
                run.instances[index].receive_packet(packet, address_of(1 - index), run.network.now)
    run.network.run_for(1.0)
    run.check()
    assert run.instances[0].core.peer_stats(1)["chunks_retransmitted"] == 0


def test_loss_and_truncation_together_still_deliver(engine: ModuleType) -> None:
    link = Link(delay=0.01, truncation=0.15, loss=0.1, duplication=0.2, jitter=0.02)
    run_scenario(engine, Scenario(8, link, (Transfer(0, 1, buffer_id=7, size=200_000),)))


def resident_bytes() -> int:
    """Return the resident memory of this process; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
@pytest.mark.parametrize(("name", "rounds"), [(PYTHON, 100), (COMPILED, 1000)])
def test_flood_leaves_memory_where_it_was(name: str, rounds: int) -> None:
    """2,000 different packets a round: 200,000 to the twin, 2 million to the compiled engine."""
    core, memory = victim(load_engine(name))
    memory_before = bytes(memory)
    nasty = nasty_packets(random.Random(5), TARGET, count=1900)
    flood = [(packet, PEER) for packet in nasty]
    flood += [(packets.message(TARGET.session, n, b"x"), STRANGER) for n in range(100)]
    flood_rounds(core, flood, rounds=5)
    once = Counter(core.stats())
    resident = resident_bytes()
    flood_rounds(core, flood, rounds=rounds - 5)
    grown = resident_bytes() - resident
    assert grown < 1 << 20, f"{grown} bytes more"
    assert core.stats() == {key: count * rounds // 5 for key, count in once.items()}
    assert core.take_events() == []
    assert memory == memory_before


def flood_rounds(core: Any, flood: list[tuple[bytes, Address]], *, rounds: int) -> None:
    gc.collect()
    receive = core.receive_packet
    for _ in range(rounds):
        for packet, address in flood:
            receive(packet, address, 0.01)
