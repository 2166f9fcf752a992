"""A payload for several instances, each of which has a link of its own."""

from __future__ import annotations

import pytest

from benchmarks.netlab import LinkProfile
from benchmarks.netlab.collective_worker import ALL_GATHER, CHAIN, DIRECT, ONE
from benchmarks.netlab.collectives import measure

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("needs_lab")]


def test_the_source_s_link_carries_a_broadcast_once() -> None:
    """Else it would take three times as long as a transfer to one, as sending directly does."""
    ways = (ONE, DIRECT, CHAIN, ALL_GATHER)
    profile = LinkProfile(rate="20mbit")
    rows = measure(profile, instances=4, megabytes=0.5, rounds=3, ways=ways)
    seconds = {row["way"]: row["seconds"] for row in rows}
    assert all(row["ideal"] < row["seconds"] for row in rows)
    assert seconds[CHAIN] < 2.0 * seconds[ONE] < seconds[DIRECT]
    assert seconds[ALL_GATHER] < 5.0 * seconds[ONE]
