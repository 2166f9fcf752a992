"""What the benchmark's process and its instances say to each other: values to be pickled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# What ways may count themselves, among others. `socket_calls` are reads and writes of sockets, for
# want of perf.
COUNTERS = ("chunks_sent", "chunks_retransmitted", "socket_calls")


@dataclass(frozen=True, slots=True)
class Command:
    """A method of `instance.Instance`, and its arguments."""

    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What the method returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Refusal:
    """The way is not available here, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The method raised."""

    text: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one instance measured in one round. Moments are of the machine's monotonic clock."""

    called_at: float
    done_at: float
    cpu_seconds: float
    """Of all threads of the process, and of the processes that the way started and waited for."""
    own_seconds: float | None = None
    """What the way measured itself, where its time is the one that counts."""


@dataclass(frozen=True, slots=True)
class Checks:
    """What one instance has after a round."""

    own: dict[int, str] = field(default_factory=dict)
    """By part: the check value of what it had."""
    received: dict[int, str] = field(default_factory=dict)
    """By part: the check value of what it got."""
    touch_seconds: float = 0.0
    """What it took to read one value of each page of what it got."""
    is_checkable: bool = True
    """False: the way moves bytes of its own."""
    counters: dict[str, int] = field(default_factory=dict)
    """Whatever the way counts: it only grows."""
