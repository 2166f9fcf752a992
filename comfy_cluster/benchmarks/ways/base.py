"""What every way of moving bytes offers to the benchmarks. One object an instance and way.

The calls on each instance, in this order: `listen`, `connect` with what all instances returned from
`listen`, then rounds of `prepare`, `run`, `received`, `finish`, and `close`. Only `run` is timed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from comfy_cluster.benchmarks.place import Place
from comfy_cluster.benchmarks.tensors import Tensors
from comfy_cluster.benchmarks.transfers import Transfer

SMALL_SIZE = 64  # bytes of a small message


@dataclass(frozen=True, slots=True)
class Work:
    """One round."""

    transfer: Transfer
    tensors: Tensors
    number: int
    """Different in every round of a run."""


class Way(ABC):
    """One way, in one instance. Used by that instance's main thread only."""

    def __init__(self, place: Place) -> None:
        """Unavailable: it cannot be measured here."""
        self.place = place

    @abstractmethod
    def listen(self) -> Any:
        """Opens what the others connect to. Returns what they must know; it goes through pickle."""

    @abstractmethod
    def connect(self, listening: Sequence[Any]) -> None:
        """Connects with all others; `listening`: what each instance's `listen` returned."""

    def prepare(self, work: Work) -> None:  # noqa: B027 (some need nothing)
        """What a careful user does before the transfer, such as to allocate the destination."""

    @abstractmethod
    def run(self, work: Work) -> None:
        """This instance's share of the transfer; returns when it has all that it is to have."""

    @abstractmethod
    def received(self, work: Work) -> dict[int, torch.Tensor]:
        """By part: what arrived in the last `run`."""

    def measured_seconds(self) -> float | None:
        """What the way measured itself, where only it can know; None: the caller's clock counts."""
        return None

    def finish(self, work: Work) -> None:  # noqa: B027 (some hold nothing)
        """Lets go of what arrived."""

    def counters(self) -> dict[str, int]:
        """What the way counts itself, COUNTERS and others: they only grow."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Frees everything. After a failure too."""

    # Small messages, between instances 0 and 1.

    def send_small(self, message: bytes) -> None:
        """Sends SMALL_SIZE bytes to the other of the first two instances."""
        raise NotImplementedError(f"{type(self).__name__} has no messages")

    def receive_small(self) -> bytes:
        """Waits for SMALL_SIZE bytes from the other one."""
        raise NotImplementedError(f"{type(self).__name__} has no messages")

    def round_trips(self, count: int) -> list[float]:
        """Instance 0: the seconds of `count` messages there and back, one after the other."""
        seconds = []
        message = bytes(SMALL_SIZE)
        for _ in range(count):
            started_at = time.perf_counter()
            self.send_small(message)
            self.receive_small()
            seconds.append(time.perf_counter() - started_at)
        return seconds

    def answer_round_trips(self, count: int) -> None:
        """Instance 1's part in `round_trips`."""
        for _ in range(count):
            self.send_small(self.receive_small())

    def stream(self, count: int) -> float:
        """Instance 0: the seconds for `count` messages in a row and one answer to the last."""
        message = bytes(SMALL_SIZE)
        started_at = time.perf_counter()
        for _ in range(count):
            self.send_small(message)
        self.receive_small()
        return time.perf_counter() - started_at

    def answer_stream(self, count: int) -> None:
        """Instance 1's part in `stream`."""
        for _ in range(count):
            message = self.receive_small()
        self.send_small(message)
