"""Round-trip time, congestion window and pacer: the formulas of the RFCs, by hand."""

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
    assert rtt.loss_delay(0.0) == pytest.approx(0.051)
    assert rtt.loss_delay(0.02) == pytest.approx(0.07)
    assert rtt.loss_delay(100.0) == pytest.approx(0.05 + 8 * 0.05)


def test_window_doubles_in_slow_start_when_it_is_used(engine: ModuleType) -> None:
    congestion = engine.CongestionController(PACKET)
    window = congestion.window
    assert window == 10 * PACKET
    assert congestion.is_slow_start
    for _ in range(10):
        congestion.on_packet_acked(PACKET, 1.0, window)
    assert congestion.window == 2 * window


def test_window_that_is_not_used_does_not_grow(engine: ModuleType) -> None:
    congestion = engine.CongestionController(PACKET)
    for _ in range(100):
        congestion.on_packet_acked(PACKET, 1.0, 2 * PACKET)
    assert congestion.window == 10 * PACKET


def test_one_round_of_losses_shrinks_the_window_once(engine: ModuleType) -> None:
    congestion = engine.CongestionController(PACKET)
    congestion.on_packets_lost(1.0, 1.5)
    assert congestion.window == int(0.7 * 10 * PACKET)
    assert not congestion.is_slow_start
    congestion.on_packets_lost(1.4, 1.6)  # sent before the first reaction at 1.5
    assert congestion.window == int(0.7 * 10 * PACKET)
    congestion.on_packets_lost(1.55, 2.0)
    assert congestion.window == 5880


def test_window_grows_by_one_packet_a_round_after_a_loss(engine: ModuleType) -> None:
    congestion = engine.CongestionController(PACKET)
    congestion.on_packets_lost(1.0, 1.5)
    before = congestion.window
    congestion.on_packet_acked(PACKET, 1.2, before)  # sent before the loss was seen: no growth
    assert congestion.window == before
    for _ in range(7):
        congestion.on_packet_acked(PACKET, 2.0, before)
    assert before + 0.8 * PACKET < congestion.window <= before + PACKET


def test_window_never_falls_under_four_packets(engine: ModuleType) -> None:
    congestion = engine.CongestionController(PACKET)
    for number in range(20):
        congestion.on_packets_lost(number + 0.5, number + 0.6)
    assert congestion.window == 4 * PACKET


def test_persistent_loss_falls_to_the_minimum_and_starts_slowly_again(engine: ModuleType) -> None:
    congestion = engine.CongestionController(PACKET)
    congestion.on_persistent_loss()
    assert congestion.window == 4 * PACKET
    assert congestion.is_slow_start


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
    windows = [engine.CongestionController(PACKET) for engine in both_engines]
    pacers = [engine.Pacer(PACKET) for engine in both_engines]
    now = 0.0
    for _ in range(5000):
        now += rng.random() * 0.01
        sample, delay, reordering = rng.random() * 0.2, rng.random() * 0.03, rng.random()
        size, flight, rate = rng.randrange(1, PACKET), rng.randrange(40_000), rng.random() * 1e7
        choice = rng.randrange(12)
        for rtt, window, pacer in zip(rtts, windows, pacers, strict=True):
            rtt.on_sample(sample, delay)
            window.on_packet_acked(size, now - sample, flight)
            if choice == 0:
                window.on_packets_lost(now - sample, now)
            if choice == 1:
                window.on_persistent_loss()
            if choice < 6:
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
                window.window,
                window.is_slow_start,
                pacer.ready_at,
            )
            for rtt, window, pacer in zip(rtts, windows, pacers, strict=True)
        ]
        assert states[0] == states[1]
