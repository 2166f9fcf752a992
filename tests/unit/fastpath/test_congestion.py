"""The congestion controller: what it learns of a path, and what it makes of losses."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest

from tests.engine_instance import Run, Scenario, Transfer
from tests.simnet import Link

PACKET = 1200
RTT = 0.02
RATE = 1_250_000.0  # bytes a second: 10 Mbit/s
PATH_SIZE = RATE * RTT


class Path:
    """A controller on a path that delivers at `rate`, one SACK for each ten packets."""

    def __init__(self, engine: ModuleType, *, rate: float = RATE, rtt: float = RTT) -> None:
        self.controller: Any = engine.CongestionController(PACKET)
        self.rate = rate
        self.rtt = rtt
        self.now = 1.0
        self.controller.on_restart(self.now)

    def deliver(self, seconds: float, *, flight: float | None = None) -> None:
        """Deliver for so long; `flight`: what stays in flight, all that is allowed by default."""
        end = self.now + seconds
        while self.now < end:
            acked = 10 * PACKET
            self.now += acked / self.rate
            in_flight = int(self.controller.window if flight is None else flight)
            self.controller.on_sack(acked, self.now - self.rtt, self.rtt, in_flight, self.now)


@pytest.fixture
def path(engine: ModuleType) -> Path:
    """A path that was filled: the bandwidth is known, the queue empty again."""
    path = Path(engine)
    path.deliver(1.0)
    path.deliver(0.5, flight=PATH_SIZE / 2)
    return path


def test_the_window_begins_with_ten_packets_and_grows_by_what_is_acknowledged(
    engine: ModuleType,
) -> None:
    controller = engine.CongestionController(PACKET)
    assert controller.window == 10 * PACKET
    assert controller.is_startup
    assert controller.pacing_rate(0.1) == pytest.approx(2.0 * 10 * PACKET / 0.1)
    controller.on_restart(1.0)
    controller.on_sack(5 * PACKET, 0.9, 0.1, 5 * PACKET, 1.1)
    assert controller.window == 15 * PACKET


def test_a_window_that_is_not_used_does_not_grow(engine: ModuleType) -> None:
    controller = engine.CongestionController(PACKET)
    controller.on_restart(1.0)
    for number in range(100):
        controller.on_sack(PACKET, 1.0, 0.1, PACKET, 1.1 + number)
    assert controller.window == 10 * PACKET


def test_the_path_is_learned(path: Path) -> None:
    assert not path.controller.is_startup
    assert path.controller.bandwidth == pytest.approx(RATE, rel=0.15)
    assert path.controller.min_rtt == RTT
    assert path.controller.window == pytest.approx(2 * PATH_SIZE + 10 * PACKET, rel=0.2)


def test_packets_leave_at_the_bandwidth_a_little_faster_and_a_little_slower(path: Path) -> None:
    rates = []
    for _ in range(400):
        path.deliver(RTT / 10, flight=1.1 * PATH_SIZE)
        rates.append(path.controller.pacing_rate(RTT) / path.controller.bandwidth)
    assert {round(rate, 2) for rate in rates} == {0.75, 1.0, 1.25}
    assert sum(rates) / len(rates) == pytest.approx(1.0, rel=0.05)


def test_losses_alone_change_nothing(path: Path) -> None:
    window, rate = path.controller.window, path.controller.pacing_rate(RTT)
    for number in range(100):
        path.controller.on_packets_lost(PACKET, path.now - RTT, RTT, path.now + number)
    assert path.controller.window == window
    assert path.controller.pacing_rate(RTT) == rate


def test_startup_ends_with_the_first_loss_of_a_filled_queue(engine: ModuleType) -> None:
    path = Path(engine)
    path.deliver(0.02)
    path.controller.on_packets_lost(PACKET, path.now, RTT, path.now)
    assert path.controller.is_startup
    path.controller.on_packets_lost(PACKET, path.now, 2 * RTT, path.now)
    assert not path.controller.is_startup


def test_startup_ends_when_a_fifth_of_a_round_is_lost(engine: ModuleType) -> None:
    """A queue that is too short to be seen in the round trip overflows."""
    path = Path(engine)
    path.deliver(0.019)
    delivered = 20 * PACKET
    path.controller.on_packets_lost(delivered // 20, path.now, RTT, path.now)
    assert path.controller.is_startup
    path.controller.on_packets_lost(delivered // 2, path.now, RTT, path.now)
    assert not path.controller.is_startup


def test_a_faster_path_is_noticed(path: Path) -> None:
    path.rate = 1.2 * RATE
    path.deliver(1.0, flight=PATH_SIZE)
    assert path.controller.bandwidth == pytest.approx(1.2 * RATE, rel=0.15)


def test_a_slower_path_is_noticed(path: Path) -> None:
    path.rate = RATE / 4
    path.deliver(3.0, flight=PATH_SIZE)
    assert path.controller.bandwidth < 0.5 * RATE


def test_little_to_send_is_not_a_slow_path(path: Path) -> None:
    path.rate = RATE / 4
    end = path.now + 3.0
    while path.now < end:
        path.controller.on_app_limited()
        path.deliver(0.001, flight=PACKET)
    assert path.controller.bandwidth == pytest.approx(RATE, rel=0.15)


def test_who_shares_a_filled_queue_holds_its_ground_until_it_is_empty(path: Path) -> None:
    path.rtt = 4 * RTT
    path.deliver(20 * 4 * RTT)
    assert path.controller.is_competing
    alone = 2 * PATH_SIZE + 10 * PACKET
    path.deliver(5.0)
    while path.controller.window <= 1.1 * PATH_SIZE:  # it drains its own part just now
        path.deliver(RTT)
    grown = path.controller.window
    assert grown > 1.5 * alone
    path.controller.on_packets_lost(PACKET, path.now, path.rtt, path.now)
    assert path.controller.window == pytest.approx(0.7 * grown, rel=0.01)
    path.controller.on_packets_lost(PACKET, path.now, path.rtt, path.now)  # of the same round trip
    assert path.controller.window == pytest.approx(0.7 * grown, rel=0.01)
    path.rtt = RTT
    path.deliver(12 * 8 * RTT)  # two drains, one every fourth cycle, and the rest of these four
    assert not path.controller.is_competing
    assert path.controller.window < 1.3 * alone


def test_a_queue_that_others_fill_does_not_keep_the_sender_draining(engine: ModuleType) -> None:
    path = Path(engine)
    path.deliver(0.05)
    path.rtt = 10 * RTT
    path.controller.on_packets_lost(PACKET, path.now, path.rtt, path.now)
    assert not path.controller.is_startup
    path_size = path.controller.bandwidth * RTT
    assert path.controller.window < 1.1 * path_size
    path.deliver(0.02, flight=path_size)
    assert path.controller.pacing_rate(path.rtt) > 0.7 * path.controller.bandwidth


@pytest.mark.parametrize(("own_share", "grows"), [(0.2, True), (0.9, False)])
def test_the_share_of_the_queue_that_a_drain_takes_away_is_brought_to_half(
    path: Path, own_share: float, grows: bool
) -> None:
    """The queue is four paths long; with this sender drained only the other's part is left."""

    def deliver(seconds: float) -> None:
        end = path.now + seconds
        while path.now < end:
            is_drained = path.controller.window < 1.1 * PATH_SIZE
            path.rtt = RTT * (1 + 4 * (1 - own_share)) if is_drained else 5 * RTT
            path.deliver(RTT / 2)

    deliver(2.0)
    assert path.controller.is_competing
    before = path.controller.window
    deliver(2.0)
    path.rtt = 5 * RTT
    while path.controller.window < 1.1 * PATH_SIZE and grows:
        path.deliver(RTT)
    assert (path.controller.window > before) == grows


def test_the_round_trip_is_measured_afresh_with_little_in_flight(path: Path) -> None:
    path.rtt = 1.2 * RTT  # the path became longer: no sample is as small as the old ones
    smallest = path.controller.window
    for _ in range(1200):
        path.deliver(0.01, flight=PATH_SIZE)
        smallest = min(smallest, path.controller.window)
    assert path.controller.min_rtt == 1.2 * RTT
    assert smallest < PATH_SIZE


def test_persistent_loss_falls_to_four_packets_and_recovers(path: Path) -> None:
    before = path.controller.window
    path.controller.on_persistent_loss()
    assert path.controller.window == 4 * PACKET
    path.deliver(0.2)
    assert path.controller.window > 0.8 * before


def test_both_engines_give_the_same_doubles(both_engines: tuple[ModuleType, ModuleType]) -> None:
    """A different double would let the twins send at different moments."""
    rng = random.Random(99)
    controllers = [engine.CongestionController(PACKET, 3) for engine in both_engines]
    now, seen = 0.0, set()
    for number in range(20_000):
        now += rng.random() * 0.01
        rtt = rng.choice([0.0, 0.01, 0.0101, 0.05]) * (1 + (number // 2000) % 3)
        acked, flight = rng.randrange(3 * PACKET), rng.randrange(90_000)
        choice = rng.randrange(400)
        for controller in controllers:
            if choice == 0:
                controller.on_persistent_loss()
            if choice == 1:
                controller.on_restart(now)
            if choice < 10:
                controller.on_packets_lost(acked, now - rtt, rtt, now)
            if choice == 11:
                controller.on_app_limited()
            if choice == 12:
                controller.set_packet_size(1200 + number % 300)
            controller.on_sack(acked, now - rtt, rtt, flight, now)
        states = [
            (
                c.window,
                c.bandwidth,
                c.min_rtt,
                c.mode,
                c.is_competing,
                c.underway,
                c.pacing_rate(0.03),
            )
            for c in controllers
        ]
        assert states[0] == states[1]
        seen.add((controllers[0].mode, controllers[0].is_competing))
    assert len(seen) >= 5, "the operations no longer reach all modes"


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("delay", [0.0005, 0.01])
def test_a_link_is_filled_with_and_without_losses(
    engine: ModuleType, loss: float, delay: float
) -> None:
    """5 MB over 50 Mbit/s; the share counts the start too."""
    rate = 6_250_000.0
    link = Link(delay=delay, rate=rate, loss=loss, queue_size=250_000)
    run = Run(engine, Scenario(5, link, (Transfer(0, 1, 1, 5_000_000),), 1472))
    run.finish()
    run.check()
    sender = run.instances[0].core.peer_stats(1)
    assert sender["bandwidth"] == pytest.approx(rate, rel=0.1)
    assert sender["bytes_retransmitted"] < (1.3 * loss + 0.005) * 5_000_000
