"""Round-trip time and pacer: the formulas of the RFCs, by hand."""

from __future__ import annotations

import random
from types import ModuleType

import pytest

PACKET = 1200


def test_first_sample_sets_everything(engine: ModuleType) -> None:
    rtt = engine.RttEstimator()
    assert not rtt.has_sample
    assert rtt.minimum == 0.0
    assert (rtt.smoothed, rtt.variance) == (0.1, 0.05)
    rtt.on_sample(0.08)
    assert rtt.has_sample
    assert (rtt.smoothed, rtt.variance, rtt.minimum, rtt.latest) == (0.08, 0.04, 0.08, 0.08)
    assert rtt.retransmit_timeout == pytest.approx(0.08 + 4 * 0.04)


def test_samples_follow_rfc_6298(engine: ModuleType) -> None:
    rng = random.Random(1)
    rtt = engine.RttEstimator()
    smoothed = variance = 0.0
    for number in range(200):
        sample = rng.uniform(0.001, 0.3)
        rtt.on_sample(sample)
        if number == 0:
            smoothed, variance = sample, sample / 2
        else:
            variance = 3 / 4 * variance + 1 / 4 * abs(smoothed - sample)
            smoothed = 7 / 8 * smoothed + 1 / 8 * sample
        assert rtt.smoothed == pytest.approx(smoothed)
        assert rtt.variance == pytest.approx(variance)
        assert rtt.retransmit_timeout == pytest.approx(smoothed + max(4 * variance, 0.001))


def test_ack_delay_is_taken_off_but_never_below_the_minimum(engine: ModuleType) -> None:
    rtt = engine.RttEstimator()
    rtt.on_sample(0.100)
    rtt.on_sample(0.110, 0.005)
    assert rtt.latest == pytest.approx(0.105)
    rtt.on_sample(0.110, 0.05)
    assert rtt.latest == pytest.approx(0.110)
    assert rtt.minimum == 0.100


@pytest.mark.parametrize("sample", [0.0, -1.0])
def test_clock_that_stands_still_is_not_a_round_trip_of_zero(
    engine: ModuleType, sample: float
) -> None:
    rtt = engine.RttEstimator()
    rtt.on_sample(sample)
    assert rtt.smoothed > 0.0
    assert rtt.has_sample


def test_loss_delay_allows_for_the_reordering_seen_within_limits(engine: ModuleType) -> None:
    rtt = engine.RttEstimator()
    for _ in range(200):
        rtt.on_sample(0.05)
    assert rtt.loss_delay(0.0) == pytest.approx(1.25 * 0.05)
    assert rtt.loss_delay(0.01) == pytest.approx(1.25 * 0.05)
    assert rtt.loss_delay(0.02) == pytest.approx(0.07)
    assert rtt.loss_delay(100.0) == pytest.approx(0.05 + 8 * 0.05)


def test_pacer_lets_a_burst_go_and_then_spreads(engine: ModuleType) -> None:
    pacer = engine.Pacer(PACKET)
    rate = 120_000.0
    pacer.refill(1.0, rate)
    for _ in range(10):
        assert pacer.ready_at <= 1.0
        pacer.on_packet_sent(PACKET)
    assert pacer.ready_at == pytest.approx(1.0 + PACKET / rate)
    pacer.refill(1.01, rate)
    assert pacer.ready_at <= 1.01


def test_pacer_keeps_the_rate_over_time(engine: ModuleType) -> None:
    pacer = engine.Pacer(PACKET)
    rate, now, sent = 1_000_000.0, 0.0, 0
    pacer.refill(now, rate)
    while now < 2.0:
        while pacer.ready_at <= now:
            pacer.on_packet_sent(PACKET)
            sent += PACKET
        now = max(now + 0.0005, pacer.ready_at)
        pacer.refill(now, rate)
    assert 2.0 * rate * 0.98 <= sent <= 2.0 * rate * 1.02 + 10 * PACKET


def test_pacer_saves_no_more_than_a_burst(engine: ModuleType) -> None:
    pacer = engine.Pacer(PACKET)
    pacer.refill(1.0, 1000.0)
    pacer.refill(1_000_000.0, 1000.0)
    for _ in range(10):
        pacer.on_packet_sent(PACKET)
    assert pacer.ready_at > 1_000_000.0


def test_pacer_without_a_rate_does_not_hold_back(engine: ModuleType) -> None:
    pacer = engine.Pacer(PACKET)
    for _ in range(1000):
        pacer.on_packet_sent(PACKET)
    assert pacer.ready_at == 0.0


def test_path_arithmetic_is_the_same_in_both_engines(
    both_engines: tuple[ModuleType, ModuleType],
) -> None:
    """To the last bit: a different double would let the twins send at different moments."""
    rng = random.Random(99)
    rtts = [engine.RttEstimator() for engine in both_engines]
    pacers = [engine.Pacer(PACKET) for engine in both_engines]
    now = 0.0
    for _ in range(5000):
        now += rng.random() * 0.01
        sample, delay, reordering = rng.random() * 0.2, rng.random() * 0.03, rng.random()
        size, rate = rng.randrange(1, PACKET), rng.random() * 1e7
        choice = rng.randrange(2)
        for rtt, pacer in zip(rtts, pacers, strict=True):
            rtt.on_sample(sample, delay)
            if choice:
                pacer.refill(now, rate)
            pacer.on_packet_sent(size)
        states = [
            (
                rtt.smoothed,
                rtt.variance,
                rtt.minimum,
                rtt.latest,
                rtt.retransmit_timeout,
                rtt.loss_delay(reordering),
                pacer.ready_at,
            )
            for rtt, pacer in zip(rtts, pacers, strict=True)
        ]
        assert states[0] == states[1]
