"""Rounds: the ways take turns at one transfer, and each result is checked. The heart of all rows.

The timed region of a round goes from the first sender's call to the moment when the last receiver
has its tensors, both by the machine's monotonic clock, which all processes share. Preparing (marks
in the source, destinations) and checking happen before and after it.

The first round of each way warms it up, does not count, and its result is compared in full; of each
other round the values that changed since the round before are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfy_cluster.benchmarks.commands import COUNTERS, Checks, Outcome
from comfy_cluster.benchmarks.errors import BenchmarkError
from comfy_cluster.benchmarks.instances import Instances
from comfy_cluster.benchmarks.load import Load
from comfy_cluster.benchmarks.results import Round, WayResult
from comfy_cluster.benchmarks.syscalls import counting
from comfy_cluster.benchmarks.transfers import Transfer
from comfy_cluster.benchmarks.ways import WAYS

# Seconds until all instances have read the command and sleep; by how much receivers are earlier.
# Under a load a thread waits for the GIL some times 5 ms before it gets that far.
START_DELAYS = {load: 0.005 if load is Load.IDLE else 0.1 for load in Load}
RECEIVER_LEADS = {load: 0.002 if load is Load.IDLE else 0.04 for load in Load}

Progress = Callable[[str], object]
"""Is told what is measured next; on the caller's thread."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The ways of a run that are there, and why the others are not."""

    names: tuple[str, ...]
    missing: Mapping[str, str]


def open_ways(instances: Instances, names: Sequence[str]) -> Opened:
    """Opens ways on all instances; those that are open already stay so."""
    reasons = {name: instances.open_way(name) for name in names}
    return Opened(
        tuple(name for name, reason in reasons.items() if reason is None),
        {name: reason for name, reason in reasons.items() if reason is not None},
    )


def able_ways(names: Sequence[str], transfer: Transfer) -> list[str]:
    """Those that can do the transfer at all."""
    return [
        name
        for name in names
        if transfer.kind in WAYS[name].kinds and transfer.part_bytes >= WAYS[name].fewest_bytes
    ]


def measure(
    instances: Instances,
    transfer: Transfer,
    ways: Sequence[str],
    *,
    rounds: int,
    warm_ups: int = 1,
    on_progress: Progress = lambda _: None,
) -> list[WayResult]:
    """Runs `rounds` rounds of each way, in turn. BenchmarkError: a way failed, or lost bytes.

    `warm_ups`: rounds of each before that, for a way that learns.
    """
    by_load = measure_loads(
        instances,
        transfer,
        ways,
        loads=[Load.IDLE],
        rounds=rounds,
        warm_ups=warm_ups,
        on_progress=on_progress,
    )
    return by_load[Load.IDLE]


def measure_loads(
    instances: Instances,
    transfer: Transfer,
    ways: Sequence[str],
    *,
    loads: Sequence[Load],
    rounds: int,
    warm_ups: int = 1,
    on_progress: Progress = lambda _: None,
) -> dict[Load, list[WayResult]]:
    """The same under several loads of the instances, which alternate round by round."""
    instances.call("begin", transfer)
    runners = {load: [_Runner(instances, transfer, way, load) for way in ways] for load in loads}
    for load, under_load in runners.items():
        for runner in under_load:
            on_progress(f"{runner.way}, {load.value}: first round")
            runner.warm_up(warm_ups)
            if len(runners) == 1:  # else the load's own calls would be counted
                runner.count_syscalls()
    for number in range(rounds):
        on_progress(f"round {number + 1} of {rounds}")
        for load, under_load in runners.items():
            instances.call("set_load", load)
            turn = number % len(under_load)  # so that no way always comes after the same one
            for runner in under_load[turn:] + under_load[:turn]:
                runner.run_timed()
        instances.call("set_load", Load.IDLE)
    instances.call("end")
    return {load: [each.result() for each in under_load] for load, under_load in runners.items()}


class _Runner:
    """One way in one transfer, under one load."""

    def __init__(self, instances: Instances, transfer: Transfer, way: str, load: Load) -> None:
        self.way = way
        self._load = load
        self._instances = instances
        self._transfer = transfer
        self._rounds: list[Round] = []
        self._syscall_count: int | None = None
        self._is_checked = True
        self._first_counters: list[dict[str, int]] = []
        self._last_counters: list[dict[str, int]] = []

    def warm_up(self, count: int) -> None:
        """Rounds that do not count; the first one's result is compared in full."""
        for number in range(count):
            self._run(is_first=number == 0)
        self._first_counters = self._last_counters

    def count_syscalls(self) -> None:
        """A round under perf. What the commands themselves need is counted too: some 15 calls an
        instance."""
        self._call("prepare", self._instances.next_round(), False)
        with counting(self._instances.process_ids) as count:
            self._go()
        self._check(is_full=False)
        self._first_counters = self._last_counters
        self._syscall_count = count.value

    def run_timed(self) -> None:
        self._rounds.append(self._run())

    def _run(self, *, is_first: bool = False) -> Round:
        self._call("prepare", self._instances.next_round(), is_first)
        outcomes = self._go()
        touch_seconds = self._check(is_full=is_first)
        return replace(round_of(self._transfer, outcomes), touch_seconds=touch_seconds)

    def _go(self) -> list[Outcome]:
        start_at = time.monotonic() + START_DELAYS[self._load]
        return self._call("go", start_at, RECEIVER_LEADS[self._load])

    def _check(self, *, is_full: bool) -> float:
        """Returns what it took to touch the results."""
        checks: list[Checks] = self._call("check", is_full)
        self._last_counters = [each.counters for each in checks]
        if not all(each.is_checkable for each in checks):
            self._is_checked = False
            return 0.0
        for leg in self._transfer.legs:
            sent = checks[leg.sender].own[leg.part]
            received = checks[leg.receiver].received[leg.part]
            if sent != received:
                raise BenchmarkError(
                    f"{self.way}: part {leg.part} arrived at instance {leg.receiver} other than it"
                    f" left instance {leg.sender}: {received} instead of {sent}"
                )
        return max(each.touch_seconds for each in checks)

    def _call(self, name: str, *arguments: object) -> list[Any]:
        return self._instances.call(name, self.way, *arguments, way=self.way)

    def result(self) -> WayResult:
        names = {name for counters in self._last_counters for name in counters}
        counted = {name: self._grown(name) for name in sorted(names.union(COUNTERS))}
        sent, retransmitted, calls = (counted[name] for name in COUNTERS)
        if self._syscall_count is None and calls:
            self._syscall_count = calls // len(self._rounds)
        return WayResult(
            self.way,
            self._transfer.delivered_bytes,
            tuple(self._rounds),
            syscall_count=self._syscall_count,
            chunks_sent=sent,
            chunks_retransmitted=retransmitted,
            is_checked=self._is_checked,
            counted=counted,
        )

    def _grown(self, counter: str) -> int:
        """By how much a counter has grown since the first round, on all instances together."""
        first, last = (
            sum(each.get(counter, 0) for each in counters)
            for counters in (self._first_counters, self._last_counters)
        )
        return last - first


def round_of(transfer: Transfer, outcomes: Sequence[Outcome]) -> Round:
    """What the instances' moments and CPU times come to."""
    senders = {leg.sender for leg in transfer.legs}
    receivers = {leg.receiver for leg in transfer.legs}
    called_at = min(outcomes[index].called_at for index in senders)
    done_at = max(outcomes[index].done_at for index in receivers)
    own = [outcomes[index].own_seconds for index in receivers]
    measured = [each for each in own if each is not None]

    def cpu(instances: set[int]) -> float:
        return sum(outcomes[index].cpu_seconds for index in instances)

    return Round(
        seconds=max(measured) if measured else done_at - called_at,
        sending_cpu=cpu(senders - receivers),
        receiving_cpu=cpu(receivers - senders),
        both_cpu=cpu(senders & receivers),
    )
