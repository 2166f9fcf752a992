"""Beside one TCP cubic flow on a simulated link each gets 30 to 70 %."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from tests.engines import COMPILED, PYTHON
from tests.race import OURS, Race
from tests.simnet import Link

RATE = 12_500_000.0  # bytes a second: 100 Mbit/s
SECONDS = 6.0
NEVER = 1e9  # seconds


# The differential tests show that the engines act alike; simulating the Python one takes long.
@pytest.mark.parametrize(
    ("engine", "rtt", "queue", "lead"),
    [
        (PYTHON, 0.02, 0.02, 0.0),
        (COMPILED, 0.001, 0.02, 0.0),
        (COMPILED, 0.001, 0.02, 2.0),
        (COMPILED, 0.001, 0.02, -2.0),
        (COMPILED, 0.02, 0.02, 0.0),
        (COMPILED, 0.02, 0.02, 2.0),
        (COMPILED, 0.02, 0.02, -2.0),
        (COMPILED, 0.02, 0.1, 0.0),
        (COMPILED, 0.02, 0.1, 2.0),
        (COMPILED, 0.02, 0.1, -2.0),
    ],
    indirect=["engine"],
)
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


@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_random_losses_and_late_sacks_are_not_taken_for_another_sender(
    engine: ModuleType, loss: float
) -> None:
    link = Link(delay=0.0005, rate=RATE, queue_size=int(0.02 * RATE), loss=loss)
    race = Race(engine, link, lead=NEVER)
    race.network.set_link(OURS[1], OURS[0], Link(delay=0.0005, jitter=0.006))
    race.run(3.0)
    assert race.counts[0] > 0.85 * (1.0 - loss) * RATE * 3.0


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
