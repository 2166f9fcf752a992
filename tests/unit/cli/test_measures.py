"""Measures travel unchanged; overlapping times count once."""

from __future__ import annotations

import pytest

from comfy_cluster.cli.measures import Interval, Measures, union_seconds


def test_measures_survive_the_journey() -> None:
    measures = Measures(3, 1.25, 2**40 + 1, 7, 2, 0.1)
    assert Measures.from_tensor(measures.to_tensor()) == measures
    assert measures.to_tensor().shape == (1, 6)


def test_the_rate_counts_both_directions() -> None:
    measures = Measures(bytes_sent=3_000_000, bytes_received=1_000_000, transfer_seconds=2.0)
    assert measures.megabytes_per_second == 2.0
    assert Measures().megabytes_per_second == 0.0


@pytest.mark.parametrize(
    ("intervals", "seconds"),
    [
        ([], 0.0),
        ([(1.0, 3.0)], 2.0),
        ([(5.0, 6.0), (1.0, 3.0)], 3.0),
        ([(1.0, 4.0), (2.0, 3.0), (3.0, 5.0)], 4.0),
        ([(1.0, 1.0), (2.0, 1.0)], 0.0),
    ],
)
def test_union_of_intervals(intervals: list[Interval], seconds: float) -> None:
    assert union_seconds(intervals) == seconds
