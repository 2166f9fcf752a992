"""Beside one TCP cubic flow on a simulated link each gets 30 to 70 %."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.race import Race
from tests.simnet import Link

RATE = 12_500_000.0  # bytes a second: 100 Mbit/s
SECONDS = 6.0


@pytest.mark.parametrize(
    ("rtt", "queue", "lead"),
    [
        (0.001, 0.02, 0.0),
        (0.001, 0.02, 2.0),
        (0.001, 0.02, -2.0),
        (0.02, 0.02, 0.0),
        (0.02, 0.02, 2.0),
        (0.02, 0.02, -2.0),
        (0.02, 0.1, 0.0),
        (0.02, 0.1, 2.0),
        (0.02, 0.1, -2.0),
    ],
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
