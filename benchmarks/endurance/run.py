"""One run: a lab, a process on each of its hosts, and the judgement on what they report."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import dataclass
from typing import Any

from benchmarks.netlab import Lab, LinkProfile

INSTANCES = 3
PORT = 9998
END_TIMEOUT = (
    180.0  # seconds beside the run itself, for starts and ends; a bound for what is broken
)

# Of resident memory. Sizes are random, and the allocator keeps some: that alone gives 1.14 in a run
# of seconds. What each round leaves behind adds up to more.
LARGEST_GROWTH = 1.25


@dataclass(frozen=True, slots=True)
class Endurance:
    """What a run came to; `reports` are those of `benchmarks.endurance.instance`."""

    reports: list[dict[str, Any]]
    errors: list[str]
    """Of processes that ended without a report."""
    lost_packets: int

    @property
    def rounds(self) -> int:
        return min((int(each["rounds"]) for each in self.reports), default=0)

    def troubles(self) -> list[str]:
        """What is not as it must be, in words; empty when all is well."""
        return self.errors + [trouble for each in self.reports for trouble in _troubles(each)]


def run(
    *,
    seconds: float,
    loss: float,
    rate: str | None = "1gbit",
    rtt_ms: float = 0.0,
    instances: int = INSTANCES,
    seed: int = 1,
    is_telling: bool = False,
) -> Endurance:
    """LabUnavailable: there can be no lab here. `is_telling`: progress goes to stderr."""
    profile = LinkProfile(rate=rate, loss=loss, rtt_ms=rtt_ms)
    with Lab(profile, hosts=instances) as lab:
        addresses = [f"{host.address}:{PORT}" for host in lab.hosts]
        options = ["--seconds", str(seconds), "--seed", str(seed)]
        processes = [
            host.python(
                "benchmarks.endurance.instance",
                *(str(host.index), *addresses, *options),
                *(["--tell"] if is_telling and host.index == 0 else []),
            )
            for host in lab.hosts
        ]
        watchdog = threading.Timer(seconds + END_TIMEOUT, _kill_all, [processes])
        watchdog.start()
        try:
            reports = [_report_of(process) for process in processes]
            for process in processes:
                process.communicate()  # ends its input: now it may leave
        finally:
            watchdog.cancel()
        errors = [
            f"instance {index} failed with exit code {process.returncode}: its error is above"
            for index, process in enumerate(processes)
            if process.returncode or reports[index] is None
        ]
        present = [each for each in reports if each is not None]
        return Endurance(present, errors, lab.counters().lost_packets)


def _report_of(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        return None
    report: dict[str, Any] = json.loads(line)
    return report


def _kill_all(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()


def _troubles(report: dict[str, Any]) -> list[str]:
    who = f"instance {report['instance']}"
    early, late = report["second_quarter"], report["last_quarter"]
    found = [
        f"{who}: {name} grew from {early[name]} to {late[name]}"
        for name in ("descriptors", "threads")
        if late[name] > early[name]
    ]
    if late["resident"] > LARGEST_GROWTH * early["resident"]:
        megabytes = f"{early['resident'] / 1e6:.0f} to {late['resident'] / 1e6:.0f} MB"
        found.append(f"{who}: resident memory grew from {megabytes}")
    pending = {name: count for name, count in report["pending"].items() if count}
    if pending:
        found.append(f"{who}: at the end there is still {pending}")
    return found
