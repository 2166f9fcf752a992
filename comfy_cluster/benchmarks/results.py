"""The figures: medians, shares and ratios of what the rounds measured. Pure arithmetic.

`Table` is what a row ends in: cells for people, and the same as values for `--json`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FEWEST_ROUNDS = 7  # below it a median is a guess; see docs/performance.md
UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one way."""

    seconds: float
    sending_cpu: float
    """CPU seconds of the instances that only send."""
    receiving_cpu: float
    """CPU seconds of those that only receive."""
    both_cpu: float
    """CPU seconds of those that do both."""
    touch_seconds: float = 0.0
    """What the slowest receiver then took to read one value of each page; not part of `seconds`."""


@dataclass(frozen=True, slots=True)
class WayResult:
    """All rounds of one way."""

    way: str
    delivered_bytes: int
    rounds: tuple[Round, ...]
    syscall_count: int | None = None
    """In one round, of all instances together; None: could not be counted."""
    chunks_sent: int = 0
    """Zero: the way has no chunks, or needed none."""
    chunks_retransmitted: int = 0
    is_checked: bool = True
    """Whether what arrived was compared with what was sent."""
    counted: Mapping[str, int] = field(default_factory=dict)
    """What the way counted itself in all rounds, of all instances together."""

    @property
    def median_seconds(self) -> float:
        return statistics.median(each.seconds for each in self.rounds)

    @property
    def touch_seconds(self) -> float:
        """Median."""
        return statistics.median(each.touch_seconds for each in self.rounds)

    @property
    def bytes_per_second(self) -> float:
        return self.delivered_bytes / self.median_seconds

    @property
    def cpu_seconds_per_gb(self) -> dict[str, float]:
        """Median, by `sending`, `receiving` and `both`, for those sides that there are."""
        sides = {
            "sending": [each.sending_cpu for each in self.rounds],
            "receiving": [each.receiving_cpu for each in self.rounds],
            "both": [each.both_cpu for each in self.rounds],
        }
        per_gb = 1e9 / self.delivered_bytes
        return {
            side: statistics.median(values) * per_gb
            for side, values in sides.items()
            if any(values)
        }

    @property
    def syscalls_per_mb(self) -> float | None:
        return (
            None if self.syscall_count is None else self.syscall_count * 1e6 / self.delivered_bytes
        )

    @property
    def resent_share(self) -> float | None:
        """Of the chunks sent; None: there were none."""
        if not self.chunks_sent:
            return None
        return self.chunks_retransmitted / self.chunks_sent

    def timing(self) -> dict[str, Any]:
        """The times alone, for JSON."""
        return {
            "seconds": [each.seconds for each in self.rounds],
            "median_seconds": self.median_seconds,
            "gigabytes_per_second": self.bytes_per_second / 1e9,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "way": self.way,
            **self.timing(),
            "touch_seconds": self.touch_seconds,
            "cpu_seconds_per_gb": self.cpu_seconds_per_gb,
            "syscalls_per_mb": self.syscalls_per_mb,
            "resent_share": self.resent_share,
            "is_checked": self.is_checked,
        }


@dataclass(frozen=True, slots=True)
class Table:
    """What a row found out."""

    row: str
    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def with_note(self, note: str) -> Table:
        """The same and one more note."""
        return replace(self, notes=(*self.notes, note))

    def to_json(self) -> dict[str, Any]:
        return {"row": self.row, "title": self.title, **self.values, "notes": list(self.notes)}


def ratios(seconds: Mapping[str, float], ours: Sequence[str]) -> dict[str, dict[str, float]]:
    """How many times as fast each of `ours` is as each of the others, by both names."""
    return {
        own: {name: value / seconds[own] for name, value in seconds.items() if name != own}
        for own in ours
        if own in seconds
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed."""
    ordered = sorted(values)
    rank = max(1, -int(-share * len(ordered) // 1))
    return ordered[min(rank, len(ordered)) - 1]


def comparison_table(
    row: str,
    title: str,
    results: Sequence[WayResult],
    *,
    ours: Sequence[str],
    missing: Mapping[str, str],
) -> Table:
    """Ways beside each other: their times, ours against each, and what each costs."""
    medians = {each.way: each.median_seconds for each in results}
    compared = ratios(medians, ours)
    columns = ("way", "median ms", "GB/s", *(f"{own} is" for own in compared))
    columns += ("touch ms", "CPU s/GB", "syscalls/MB", "resent")
    return Table(
        row,
        title,
        columns,
        tuple(_line(each, compared) for each in results),
        {
            "delivered_bytes": results[0].delivered_bytes if results else 0,
            "ways": [each.to_json() for each in results],
            "ratios": compared,
            "missing": dict(missing),
        },
        round_notes(results, missing),
    )


def _line(result: WayResult, compared: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    shares = [own.get(result.way) for own in compared.values()]
    return (
        result.way,
        f"{result.median_seconds * 1e3:.2f}",
        f"{result.bytes_per_second / 1e9:.2f}",
        *(UNKNOWN if share is None else f"{share:.2f} x" for share in shares),
        f"{result.touch_seconds * 1e3:.2f}" if result.is_checked else UNKNOWN,
        " + ".join(f"{value:.2f}" for value in result.cpu_seconds_per_gb.values()) or UNKNOWN,
        UNKNOWN if result.syscalls_per_mb is None else f"{result.syscalls_per_mb:.1f}",
        UNKNOWN if result.resent_share is None else f"{result.resent_share * 100:.2f} %",
    )


def missing_notes(missing: Mapping[str, str]) -> tuple[str, ...]:
    """A line for each way that is not there, with the reason."""
    return tuple(f"{name} is left out: {reason}" for name, reason in missing.items())


def round_notes(results: Sequence[WayResult], missing: Mapping[str, str]) -> tuple[str, ...]:
    """What must be known to read a table of rounds."""
    notes = list(missing_notes(missing))
    unchecked = [each.way for each in results if not each.is_checked]
    if unchecked:
        notes.append(f"{', '.join(unchecked)}: moves bytes of its own, nothing to compare")
    if results and len(results[0].rounds) < FEWEST_ROUNDS:
        notes.append(f"fewer than {FEWEST_ROUNDS} rounds: take the figures for a first look only")
    return tuple(notes)
