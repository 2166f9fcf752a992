"""The row of small messages: 64 bytes there and back, and as many in a row as go.

Of ours a message with its ACK; of the others a message and the other process's answer. In a row,
ours has up to 64 that wait for their ACKs, and the others are answered once, after the last.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from comfy_cluster.benchmarks.instances import Instances
from comfy_cluster.benchmarks.measure import open_ways
from comfy_cluster.benchmarks.results import Table, missing_notes, percentile, ratios
from comfy_cluster.benchmarks.session import Session
from comfy_cluster.benchmarks.ways import WAYS

WARM_UP_COUNT = 50


@dataclass(frozen=True, slots=True)
class MessageResult:
    """One way."""

    way: str
    round_trips: tuple[float, ...]
    """Seconds."""
    rates: tuple[float, ...]
    """Messages a second, of each stream."""

    @property
    def median_seconds(self) -> float:
        return percentile(self.round_trips, 0.5)

    @property
    def p99_seconds(self) -> float:
        return percentile(self.round_trips, 0.99)

    @property
    def messages_per_second(self) -> float:
        return statistics.median(self.rates)

    def to_json(self) -> dict[str, Any]:
        return {
            "way": self.way,
            "round_trip_count": len(self.round_trips),
            "p50_seconds": self.median_seconds,
            "p99_seconds": self.p99_seconds,
            "messages_per_second": self.messages_per_second,
        }


def messages_row(session: Session) -> Iterator[Table]:
    instances = session.instances(2)
    names = [name for name in session.options.ways if WAYS[name].has_python]
    opened = open_ways(instances, names)
    rounds = session.options.rounds
    count = max(1, session.options.message_count // rounds)
    trips: dict[str, list[float]] = {name: [] for name in opened.names}
    rates: dict[str, list[float]] = {name: [] for name in opened.names}
    for name in opened.names:
        _round_trips(instances, name, WARM_UP_COUNT)
    for number in range(rounds):
        session.on_progress(f"small messages: round {number + 1} of {rounds}")
        for name in opened.names:
            trips[name] += _round_trips(instances, name, count)
            rates[name].append(count / _stream_seconds(instances, name, count))
    results = [MessageResult(name, tuple(trips[name]), tuple(rates[name])) for name in opened.names]
    compared = ratios({each.way: each.median_seconds for each in results}, session.options.ours)
    yield Table(
        "messages",
        "small messages, 64 bytes",
        ("way", "p50 ms", "p99 ms", "messages/s"),
        tuple(
            (
                each.way,
                f"{each.median_seconds * 1e3:.3f}",
                f"{each.p99_seconds * 1e3:.3f}",
                f"{each.messages_per_second:.0f}",
            )
            for each in results
        ),
        {
            "ways": [each.to_json() for each in results],
            "ratios": compared,
            "missing": dict(opened.missing),
        },
        missing_notes(opened.missing),
    )


def _round_trips(instances: Instances, way: str, count: int) -> list[float]:
    seconds: list[float] = instances.call("message_round_trips", way, count, way=way)[0]
    return seconds


def _stream_seconds(instances: Instances, way: str, count: int) -> float:
    seconds: float = instances.call("message_stream", way, count, way=way)[0]
    return seconds
