"""Whole transfers between engines on a simulated network: bit-exact, once, without waste."""

from __future__ import annotations

import random
from functools import partial
from types import ModuleType

import pytest

from tests.engine_instance import EngineInstance, Run, Scenario, Transfer, run_scenario
from tests.simnet import Link

SEED_GROUPS = 30
SEEDS_PER_GROUP = 10
MEGABIT = 125_000.0  # bytes a second


def random_size(rng: random.Random, *, limit: int, chunk_size: int) -> int:
    """Log-uniform, with the sizes at which off-by-one mistakes show."""
    if rng.random() < 0.15:
        return rng.choice([0, 1, chunk_size - 1, chunk_size, chunk_size + 1, 64 * chunk_size])
    return int(limit ** rng.random())


def random_scenario(seed: int) -> Scenario:
    rng = random.Random(seed)
    packet_size = rng.choice([1200, 1200, 1472, 8900])
    link = Link(
        delay=rng.choice([0.0, 0.00005, 0.001, 0.02, 0.2]),
        jitter=rng.choice([0.0, 0.0, 0.0001, 0.005, 0.1]),
        rate=rng.choice([None, 1.0, 10.0, 100.0, 1000.0, 10_000.0]),
        queue_size=rng.choice([65_536, 262_144, 1 << 20]),
        loss=rng.choice([0.0, 0.0, 0.001, 0.01, 0.05, 0.2]),
        duplication=rng.choice([0.0, 0.0, 0.01, 0.2]),
        truncation=rng.choice([0.0, 0.0, 0.0, 0.02]),
    )
    if link.rate is not None:
        link = Link(**(vars(link) | {"rate": link.rate * MEGABIT}))
    instance_count = rng.choice([2, 2, 2, 3, 4])
    count = rng.choice([1, 1, 2, 3, 6])
    transfers = []
    for number in range(count):
        source, target = rng.sample(range(instance_count), 2)
        size = random_size(rng, limit=1200 * packet_size // count, chunk_size=packet_size - 52)
        transfers.append(
            Transfer(
                source,
                target,
                buffer_id=(source << 48) + number,
                size=size,
                prefix_size=rng.choice([0, 1, 64, size]) if size > 64 else 0,
                starts_at=rng.choice([0.0, 0.0, 0.01, 0.5]),
            )
        )
    return Scenario(seed, link, tuple(transfers), packet_size, instance_count)


def has_events(instance: EngineInstance, count: int) -> bool:
    return len(instance.events) >= count


def assert_no_waste(run: Run) -> None:
    assert run.bytes_retransmitted <= run.retransmission_limit, (
        f"{run.scenario}: {run.bytes_retransmitted} bytes sent again,"
        f" {run.network.counts.lost_bytes} lost"
    )


@pytest.mark.parametrize("group", range(SEED_GROUPS))
def test_random_transfers_arrive_bit_exact_and_once(engine: ModuleType, group: int) -> None:
    for seed in range(group * SEEDS_PER_GROUP, (group + 1) * SEEDS_PER_GROUP):
        assert_no_waste(run_scenario(engine, random_scenario(seed)))


@pytest.mark.parametrize(
    ("packet_size", "megabits", "loss"),
    [(65_507, 10_000.0, 0.0), (65_507, None, 0.01), (8900, 10_000.0, 0.0)],
)
def test_64_megabytes_arrive_bit_exact(
    engine: ModuleType, packet_size: int, megabits: float | None, loss: float
) -> None:
    rate = megabits and megabits * MEGABIT
    link = Link(delay=0.0001, rate=rate, queue_size=1 << 21, loss=loss)
    transfer = Transfer(0, 1, buffer_id=7, size=64 << 20, prefix_size=64)
    assert_no_waste(run_scenario(engine, Scenario(1, link, (transfer,), packet_size)))


@pytest.mark.parametrize("seed", range(12))
def test_64_megabytes_survive_any_path(engine: ModuleType, seed: int) -> None:
    """The largest packets, so that a thousand of them carry all; the worst of each property."""
    rng = random.Random(seed)
    link = Link(
        delay=rng.choice([0.0, 0.001, 0.05, 0.2]),
        jitter=rng.choice([0.0, 0.005, 0.1]),
        rate=rng.choice([None, 100 * MEGABIT, 1000 * MEGABIT, 10_000 * MEGABIT]),
        queue_size=1 << 22,
        loss=rng.choice([0.0, 0.01, 0.05, 0.2]),
        duplication=rng.choice([0.0, 0.05, 0.2]),
    )
    transfer = Transfer(0, 1, buffer_id=7, size=64 << 20, prefix_size=64)
    assert_no_waste(run_scenario(engine, Scenario(seed, link, (transfer,), 65_507)))


@pytest.mark.parametrize("megabits", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("delay", [0.0001, 0.005, 0.05])
def test_clean_link_is_filled(engine: ModuleType, megabits: float, delay: float) -> None:
    """Twice the time of the bare bytes, and the round trips of slow start."""
    rate = megabits * MEGABIT
    queue_size = max(65_536, int(2 * delay * rate))
    link = Link(delay=delay, rate=rate, queue_size=queue_size)
    transfer = Transfer(0, 1, buffer_id=7, size=500_000)
    run = Run(engine, Scenario(1, link, (transfer,)))
    run.start(transfer)
    allowed = 2 * transfer.size / rate + 14 * 2 * delay + 0.1
    run.network.run_until(lambda: bool(run.instances[0].events), time_limit=allowed)


def test_lost_sacks_do_not_look_like_a_slow_path(engine: ModuleType) -> None:
    """A chunk whose SACK was lost is acknowledged late; that lateness is not a round trip."""
    link = Link(delay=0.02, loss=0.2)
    transfer = Transfer(0, 1, buffer_id=7, size=500_000)
    for seed in range(20):
        run = Run(engine, Scenario(seed, link, (transfer,)))
        run.start(transfer)
        run.network.run_until(partial(has_events, run.instances[0], 1), time_limit=30.0)
        assert run.instances[0].core.peer_stats(1)["smoothed_rtt"] < 10 * 0.04, f"seed {seed}"


# Seeds of random_scenario that once failed. 2487: lost SACKs taken for round trips of seconds. The
# others: a flight called lost as a whole, whose SACKs then taught nothing, so that it was sent
# again and again on a slow link.
FAILED_ONCE = (2487, 1433, 1870, 1913, 2198, 2204, 2323, 2592, 2683, 2722, 2809, 3063, 3652, 3929)


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_scenario_that_once_failed(engine: ModuleType, seed: int) -> None:
    assert_no_waste(run_scenario(engine, random_scenario(seed)))


@pytest.mark.parametrize("queue_seconds", [0.5, 2.0, 8.0])
def test_queue_far_longer_than_the_path_is_learned(
    engine: ModuleType, queue_seconds: float
) -> None:
    """One megabit, no loss: the round trip grows from 2 ms to seconds while the queue fills."""
    link = Link(delay=0.001, rate=MEGABIT, queue_size=int(queue_seconds * MEGABIT))
    transfer = Transfer(0, 1, buffer_id=7, size=800_000)
    run = run_scenario(engine, Scenario(1, link, (transfer,)))
    assert_no_waste(run)
    assert run.network.now < 2 * transfer.size / MEGABIT + 10.0


def test_peers_share_the_sender(engine: ModuleType) -> None:
    """Three equal buffers to three peers end at about the same time: none waits for another."""
    link = Link(delay=0.001, rate=100 * MEGABIT)
    transfers = tuple(Transfer(0, peer, buffer_id=peer, size=1_000_000) for peer in (1, 2, 3))
    run = Run(engine, Scenario(3, link, transfers, instance_count=4))
    for transfer in transfers:
        run.start(transfer)
    times = []
    for count in (1, 2, 3):
        run.network.run_until(partial(has_events, run.instances[0], count), time_limit=5.0)
        times.append(run.network.now)
    assert times[2] < 1.5 * times[0]


def test_buffers_to_one_peer_share_its_window(engine: ModuleType) -> None:
    """A small buffer that starts behind a large one does not wait for its end."""
    link = Link(delay=0.001, rate=10 * MEGABIT)
    large, small = Transfer(0, 1, buffer_id=1, size=2_000_000), Transfer(0, 1, 2, size=50_000)
    run = Run(engine, Scenario(3, link, (large, small)))
    run.start(large)
    run.network.run_for(0.1)
    run.start(small)
    run.network.run_until(lambda: bool(run.instances[0].events), time_limit=5.0)
    assert run.instances[0].events == [(engine.EVENT_OUTGOING_ACKED, 1, 2)]


def test_of_equal_buffers_to_one_peer_the_first_is_there_first(engine: ModuleType) -> None:
    """So the parts of a tensor are decoded one after the other, not all at its end."""
    transfers = tuple(Transfer(0, 1, buffer_id=number, size=500_000) for number in (1, 2, 3, 4))
    run = Run(engine, Scenario(3, Link(delay=0.001, rate=100 * MEGABIT), transfers))
    for transfer in transfers:
        run.start(transfer)
    times = []
    for count in (1, 2, 3, 4):
        run.network.run_until(partial(has_events, run.instances[0], count), time_limit=5.0)
        times.append(run.network.now)
    assert [buffer_id for _, _, buffer_id in run.instances[0].events] == [1, 2, 3, 4]
    assert times[0] < 0.4 * times[3]


def test_a_large_buffer_goes_on_beside_small_ones_that_come_again_and_again(
    engine: ModuleType,
) -> None:
    link = Link(delay=0.001, rate=10 * MEGABIT)
    large = Transfer(0, 1, buffer_id=1, size=1_000_000)
    small = [Transfer(0, 1, buffer_id=number, size=100_000) for number in range(2, 60)]
    run = Run(engine, Scenario(3, link, (large, *small)))
    run.start(large)
    for transfer in small:  # two thirds of what the link carries
        run.start(transfer)
        run.network.run_for(0.12)
        if (engine.EVENT_OUTGOING_ACKED, 1, large.buffer_id) in run.instances[0].events:
            break
    assert transfer.buffer_id < 40


def test_both_directions_at_once_share_a_connection(engine: ModuleType) -> None:
    link = Link(delay=0.005, rate=100 * MEGABIT, loss=0.02)
    transfers = tuple(
        Transfer(source, 1 - source, buffer_id=(source << 48) + number, size=200_000)
        for source in (0, 1)
        for number in range(3)
    )
    assert_no_waste(run_scenario(engine, Scenario(11, link, transfers)))


def test_many_small_buffers(engine: ModuleType) -> None:
    transfers = tuple(Transfer(0, 1, buffer_id=n, size=n, prefix_size=n // 2) for n in range(300))
    run_scenario(engine, Scenario(5, Link(delay=0.01, loss=0.05, jitter=0.02), transfers))


def test_a_buffer_of_packets_over_the_mtu_falls_silent_once_that_is_known(
    engine: ModuleType,
) -> None:
    """The engine trusts the packet size that it was given, until only small packets come back."""
    run = Run(engine, Scenario(1, Link(delay=0.001, mtu=1472), (), packet_size=8900))
    run.start(Transfer(0, 1, buffer_id=7, size=50_000))
    run.network.run_for(10.0)
    assert run.instances[1].events == []
    assert (engine.EVENT_PACKET_SIZE, 1, 1200) in run.instances[0].core.take_events()
    stats = run.instances[0].core.peer_stats(1)
    assert stats["packet_size"] == 1200
    assert stats["bytes_in_flight"] == 0
    packets_sent = stats["packets_sent"]
    run.network.run_for(10.0)
    assert run.instances[0].core.peer_stats(1)["packets_sent"] == packets_sent
