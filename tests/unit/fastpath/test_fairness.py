"""Beside one TCP cubic flow on a simulated link each gets 30 to 70 %.

Long simulations run on the compiled engine, since simulating the Python one takes ten times as
long; that it does the same beside a cubic flow has a shorter test.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from tests.engines import COMPILED
from tests.long import IS_LONG
from tests.race import OURS, Race
from tests.simnet import Link

RATE = 12_500_000.0  # bytes a second: 100 Mbit/s
SECONDS = 6.0
NEVER = 1e9  # seconds
# Seconds: of the path, of its queue, and that ours has alone at first (cubic if less than 0).
RACES = [(0.001, 0.02, 0.0), *((0.02, 0.02, lead) for lead in (0.0, 2.0, -2.0)), (0.02, 0.1, 0.0)]
OTHER_RACES = [
    (rtt, queue, lead) for rtt, queue in ((0.001, 0.02), (0.02, 0.1)) for lead in (2.0, -2.0)
]


@pytest.mark.parametrize("engine", [COMPILED], indirect=True)
@pytest.mark.parametrize(("rtt", "queue", "lead"), RACES + (OTHER_RACES if IS_LONG else []))
def test_a_tcp_cubic_flow_beside_ours_gets_a_fair_share(
    engine: ModuleType, rtt: float, queue: float, lead: float
) -> None:
    link = Link(delay=rtt / 2, rate=RATE, queue_size=int(queue * RATE))
    race = Race(engine, link, lead)
    race.run(abs(lead) + SECONDS)
    before = race.counts
    race.run(SECONDS)
    shares = [(now - then) / RATE / SECONDS for now, then in zip(race.counts, before, strict=True)]
    assert all(0.3 < share < 0.7 for share in shares), "ours {:.2f}, cubic {:.2f}".format(*shares)


def test_both_engines_do_the_same_beside_a_tcp_cubic_flow(
    both_engines: tuple[ModuleType, ModuleType],
) -> None:
    """Through slow start, the first losses and the competition after them."""
    link = Link(delay=0.01, rate=RATE, queue_size=int(0.02 * RATE), loss=0.0005)
    twin, compiled = (Race(engine, link) for engine in both_engines)
    for _ in range(8):
        for race in (twin, compiled):
            race.run(0.25)
        assert twin.counts == compiled.counts
        assert twin.sender.core.peer_stats(1) == compiled.sender.core.peer_stats(1)
    assert twin.sender.core.peer_stats(1)["packets_lost"] > 0


@pytest.mark.parametrize("engine", [COMPILED], indirect=True)
@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_random_losses_and_late_sacks_are_not_taken_for_another_sender(
    engine: ModuleType, loss: float
) -> None:
    link = Link(delay=0.0005, rate=RATE, queue_size=int(0.02 * RATE), loss=loss)
    race = Race(engine, link, lead=NEVER)
    race.network.set_link(OURS[1], OURS[0], Link(delay=0.0005, jitter=0.006))
    race.run(3.0)
    assert race.counts[0] > 0.85 * (1.0 - loss) * RATE * 3.0


@pytest.mark.parametrize("engine", [COMPILED], indirect=True)
def test_a_path_that_becomes_longer_is_not_taken_for_another_sender(engine: ModuleType) -> None:
    """With losses by chance, each of which takes something of a competing sender's window."""
    link = Link(delay=0.01, rate=RATE, queue_size=int(0.04 * RATE), loss=0.01)
    race = Race(engine, link, lead=NEVER)
    race.run(2.0)
    for source, target, there in ((*OURS, link), (OURS[1], OURS[0], Link())):
        race.network.set_link(source, target, replace(there, delay=0.02))
    race.run(3.0)
    before = race.counts[0]
    race.run(2.0)
    assert race.counts[0] - before > 0.85 * RATE * 2.0


def test_a_path_of_less_than_the_smallest_window_is_drained_once(engine: ModuleType) -> None:
    rate = 600_000.0
    race = Race(engine, Link(delay=0.0005, rate=rate, queue_size=int(0.1 * rate)), lead=2.0)
    race.run(11.0)
    before = race.counts
    race.run(6.0)
    ours, cubic = ((now - then) / rate / 6.0 for now, then in zip(race.counts, before, strict=True))
    assert ours > 0.3, f"ours {ours:.2f}, cubic {cubic:.2f}"
