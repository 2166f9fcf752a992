"""Losses that only a timer can find, and silence: probes, backoff, and no spinning."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from tests.engine_instance import Run, Scenario, Transfer, address_of
from tests.packets import KIND_CHUNK, KIND_SACK
from tests.simnet import Address, Link

ROUND_TRIP = 0.02
LINK = Link(delay=ROUND_TRIP / 2)
CHUNKS = 8


def started_run(engine: ModuleType, size: int | None = None) -> Run:
    run = Run(engine, Scenario(1, LINK, ()))
    run.start(Transfer(0, 1, buffer_id=7, size=size or CHUNKS * engine.chunk_size_for(1200)))
    return run


def lose(run: Run, source: int, target: int, packets: set[int]) -> None:
    link = Link(delay=LINK.delay, lost_packets=frozenset(packets))
    run.network.set_link(address_of(source), address_of(target), link)


def run_to_the_end(run: Run, time_limit: float = 5.0) -> None:
    sender, receiver = run.instances
    run.network.run_until(lambda: bool(sender.events and receiver.events), time_limit=time_limit)
    for instance in run.instances:
        assert len(instance.events) == 1
    for buffer_id, payload in run.payloads.items():
        assert payload in bytes(run.memories[buffer_id])


@pytest.mark.parametrize("lost", range(CHUNKS))
def test_one_lost_chunk_is_sent_again_and_no_other(engine: ModuleType, lost: int) -> None:
    run = started_run(engine)
    lose(run, 0, 1, {lost})
    run_to_the_end(run)
    stats = run.instances[0].core.peer_stats(1)
    if lost < CHUNKS - 1:
        assert stats["chunks_retransmitted"] == 1
        assert stats["probes_sent"] == 0
        assert run.network.now < 6 * ROUND_TRIP


def test_lost_last_chunk_is_resent_after_probe(engine: ModuleType) -> None:
    run = started_run(engine)
    lose(run, 0, 1, {CHUNKS - 1})
    run_to_the_end(run)
    stats = run.instances[0].core.peer_stats(1)
    assert stats["probes_sent"] == 1
    assert stats["chunks_retransmitted"] <= 2
    assert run.network.now < 0.5


def test_whole_first_flight_lost_is_found_by_probe(engine: ModuleType) -> None:
    run = started_run(engine)
    lose(run, 0, 1, set(range(CHUNKS)))
    run_to_the_end(run)
    assert run.instances[0].core.peer_stats(1)["probes_sent"] >= 1


def test_lost_sacks_cost_no_more_than_a_probe(engine: ModuleType) -> None:
    """The SACK of the last chunk is lost: a probe makes the receiver say it again."""
    run = started_run(engine)
    lose(run, 1, 0, {0, 1})
    run_to_the_end(run)
    stats = run.instances[0].core.peer_stats(1)
    assert stats["probes_sent"] == 2
    assert run.instances[1].core.peer_stats(0)["chunks_duplicate"] >= 1


def test_reordered_packets_are_not_sent_again(engine: ModuleType) -> None:
    """Packets that come within the variance of the round trip are late, not lost."""
    run = Run(engine, Scenario(4, Link(delay=0.01, jitter=0.004), ()))
    run.start(Transfer(0, 1, buffer_id=7, size=400_000))
    run_to_the_end(run)
    stats = run.instances[0].core.peer_stats(1)
    assert stats["chunks_retransmitted"] <= 0.02 * stats["chunks_sent"]


def test_duplicated_packets_are_counted_and_change_nothing(engine: ModuleType) -> None:
    run = Run(engine, Scenario(4, Link(delay=0.01, duplication=1.0), ()))
    run.start(Transfer(0, 1, buffer_id=7, size=100_000))
    run_to_the_end(run)
    run.network.run_for(1.0)
    receiver = run.instances[1].core
    chunk_count = receiver.peer_stats(0)["chunks_received"]
    assert (
        receiver.stats()["replayed"]
        == chunk_count
        == run.instances[0].core.peer_stats(1)["chunks_sent"]
    )
    assert receiver.peer_stats(0)["chunks_duplicate"] == 0


def packets_of_kind(packets: list[tuple[Address, bytes]], kind: int) -> int:
    return sum(packet[0] == kind for _, packet in packets)


def test_probes_back_off_and_silence_does_not_spin(engine: ModuleType) -> None:
    run = started_run(engine, size=1_000_000)
    run.network.run_for(0.1)
    run.network.set_links(Link(loss=1.0))
    run.network.run_for(5.0)
    sent, steps = run.network.counts.packets, run.network.steps
    run.network.run_for(60.0)
    assert 60 <= run.network.counts.packets - sent <= 60 * 3
    assert run.network.steps - steps <= 60 * 6
    stats = run.instances[0].core.peer_stats(1)
    assert stats["congestion_window"] == 4 * 1200  # nothing came back: the smallest window


def test_transfer_goes_on_when_the_silence_ends(engine: ModuleType) -> None:
    run = started_run(engine, size=300_000)
    run.network.run_for(0.05)
    run.network.set_links(Link(loss=1.0))
    run.network.run_for(20.0)
    run.network.set_links(LINK)
    run_to_the_end(run, time_limit=3.0)


def test_short_outage_with_a_full_window_costs_little_more_than_itself(engine: ModuleType) -> None:
    """Probes must not wait for a flight that is gone: the collapsed window would hold them back."""
    run = Run(engine, Scenario(5, Link(delay=0.01, rate=12.5e6), ()))
    run.start(Transfer(0, 1, buffer_id=7, size=4_000_000))
    run.network.run_for(0.15)
    assert run.instances[0].core.peer_stats(1)["bytes_in_flight"] > 20 * 1200
    run.network.set_links(Link(loss=1.0))
    run.network.run_for(0.3)
    run.network.set_links(Link(delay=0.01, rate=12.5e6))
    run_to_the_end(run, time_limit=1.5)
    assert run.instances[0].core.peer_stats(1)["probes_sent"] < 10


def test_idle_connection_needs_no_packet_and_no_timer(engine: ModuleType) -> None:
    run = started_run(engine)
    run_to_the_end(run)
    run.network.run_for(1.0)
    assert [instance.next_timer() for instance in run.instances] == [None, None]
    sent = run.network.counts.packets
    run.network.run_for(3600.0)
    assert run.network.counts.packets == sent


def test_closing_a_buffer_ends_its_traffic(engine: ModuleType) -> None:
    run = started_run(engine, size=1_000_000)
    run.network.run_for(0.1)
    sender = run.instances[0].core
    sender.close_outgoing(7)
    assert sender.peer_stats(1)["bytes_in_flight"] == 0
    assert packets_of_kind(sender.packets_to_send(run.network.now), KIND_CHUNK) == 0
    run.network.run_for(1.0)
    assert sender.next_timer() is None
    sender.close_outgoing(7)


def test_receiver_window_is_granted_by_its_sacks(engine: ModuleType) -> None:
    """With a small receive capacity no more is in flight than that and what the path holds."""
    run = Run(engine, Scenario(1, Link(delay=0.05, rate=1_000_000.0, queue_size=1 << 20), ()))
    small = engine.PacketEngine(receive_capacity=100_000)
    run.instances[1].core = small
    run.instances[1].connect(0, local_session=200, remote_session=101, packet_size=1200, now=0.0)
    run.start(Transfer(0, 1, buffer_id=7, size=3_000_000))
    run_to_the_end(run, time_limit=60.0)
    stats = run.instances[0].core.peer_stats(1)
    assert stats["receive_window"] == 100_000
    assert stats["congestion_window"] > 200_000
    assert 100_000 < run.instances[0].largest_flight[1] <= 100_000 + 1.1 * 100_000


def test_two_senders_share_the_receive_capacity(engine: ModuleType) -> None:
    transfers = (Transfer(1, 0, buffer_id=1, size=2_000_000), Transfer(2, 0, 2, size=2_000_000))
    run = Run(engine, Scenario(1, Link(delay=0.02), transfers, instance_count=3))
    for transfer in transfers:
        run.start(transfer)
    run.network.run_for(0.3)
    assert [run.instances[n].core.peer_stats(0)["receive_window"] for n in (1, 2)] == [1 << 19] * 2


def test_sacks_are_sent_for_every_second_chunk_at_most(engine: ModuleType) -> None:
    """On a clean path acknowledgements stay a small part of the traffic."""
    run = started_run(engine, size=1_000_000)
    run_to_the_end(run)
    receiver = run.instances[1].core.peer_stats(0)
    assert receiver["sacks_sent"] <= receiver["chunks_received"] / 2 + 2


def test_chunks_before_the_destination_is_open_are_not_lost_for_good(engine: ModuleType) -> None:
    run = Run(engine, Scenario(1, LINK, ()))
    payload = bytes(range(256)) * 40
    chunk_size = engine.chunk_size_for(1200)
    run.instances[0].core.open_outgoing(1, 7, b"", payload, chunk_size=chunk_size)
    run.network.run_for(0.3)
    assert run.instances[1].core.stats()["unknown_buffer"] > 0
    memory = bytearray(len(payload))
    run.instances[1].core.open_incoming(0, 7, memory, size=len(payload), chunk_size=chunk_size)
    run.network.run_until(lambda: bool(run.instances[0].events), time_limit=5.0)
    assert memory == payload


def test_sack_kind_is_sent_soon_after_the_last_chunk(engine: ModuleType) -> None:
    """One chunk alone is acknowledged at once when it completes its buffer."""
    run = started_run(engine, size=10)
    receiver = run.instances[1].core
    packets = run.instances[0].core.packets_to_send(0.0)
    receiver.receive_packet(packets[0][1], address_of(0), 5.0)
    assert packets_of_kind(receiver.packets_to_send(5.0), KIND_SACK) == 1


def time_of_a_small_transfer(engine: ModuleType, lost_chunk: int | None) -> float:
    """Seconds until 20 packets are there, on a path whose round trip of 0.1 s is known."""
    clean = Link(delay=0.05)
    run = Run(engine, Scenario(1, clean, (), instance_count=2))
    for number in range(10):
        run.start(Transfer(0, 1, buffer_id=number, size=20 * 1148))
        run.network.run_for(1.0)
    there = run.network.direction(address_of(0), address_of(1))
    if lost_chunk is not None:
        there.link = replace(clean, lost_packets=frozenset({there.counts.packets + lost_chunk}))
    run.start(Transfer(0, 1, buffer_id=99, size=20 * 1148))
    started = run.network.now
    run.network.run_until(lambda: run.payloads[99] in run.memories[99], time_limit=5.0)
    return run.network.now - started


def test_one_lost_packet_costs_a_small_transfer_one_round_trip(engine: ModuleType) -> None:
    """In its midst or at its tail, where no later packet shows the gap (RFC 8985 section 7)."""
    clean = time_of_a_small_transfer(engine, None)
    assert clean < 0.075
    for lost_chunk in (0, 10, 18, 19):
        late = time_of_a_small_transfer(engine, lost_chunk)
        assert late - clean < 1.35 * 0.1, f"chunk {lost_chunk}: {late - clean:.3f} s more"
