"""A lab leaves nothing behind, and touches nothing that is not its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.netlab import Lab, LinkProfile, namespaces
from benchmarks.netlab.lab import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("needs_lab")]

TIMEOUT = 30.0  # seconds
DELAYED = LinkProfile(rtt_ms=2)  # has a relay's process
HOLD = """
import sys
from benchmarks.netlab import Lab, LinkProfile

with Lab(LinkProfile(rtt_ms=2)) as lab:
    sleeper = lab.hosts[0].popen(["sleep", "600"])
    print(lab.name, lab._relay.pid, sleeper.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held_lab() -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lab, and says its name and the processes it started."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        yield process
        process.kill()


def said_by(process: subprocess.Popen[str]) -> tuple[str, list[int]]:
    assert process.stdout is not None
    name, *processes = process.stdout.readline().split()
    assert name_of_some(name)
    return name, [int(number) for number in processes]


def name_of_some(lab: str) -> list[str]:
    return [name for name in namespaces.namespaces() if name.startswith(f"{lab}-")]


def is_running(process: int) -> bool:
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def wait_for_ends(processes: list[int]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline, processes
        time.sleep(0.01)


@pytest.mark.parametrize("profile", [LinkProfile(), DELAYED], ids=["kernel", "relay"])
def test_nothing_is_left_after_an_exception(profile: LinkProfile) -> None:
    lab = Lab(profile)
    with pytest.raises(ZeroDivisionError), lab:
        sleeper = lab.hosts[1].popen(["sleep", "600"])
        assert len(name_of_some(lab.name)) == 3
        raise ZeroDivisionError
    assert name_of_some(lab.name) == []
    assert sleeper.returncode == -signal.SIGKILL


def test_nothing_is_left_when_it_cannot_be_built() -> None:
    lab = Lab()
    namespaces.add_namespace(lab.hosts[1].namespace)  # in the way
    with pytest.raises(RuntimeError, match="File exists"), lab:
        pass
    assert name_of_some(lab.name) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_after_a_signal(
    held_lab: subprocess.Popen[str], number: signal.Signals
) -> None:
    name, processes = said_by(held_lab)
    held_lab.send_signal(number)
    held_lab.wait(TIMEOUT)
    assert name_of_some(name) == []
    assert not any(map(is_running, processes))


def test_leftovers_of_a_killed_lab_go_and_others_stay(held_lab: subprocess.Popen[str]) -> None:
    name, processes = said_by(held_lab)
    other = f"other-{name}"
    with Lab(DELAYED) as living:
        subprocess.run(["ip", "netns", "add", other], check=True)
        try:
            held_lab.kill()
            held_lab.wait(TIMEOUT)
            assert len(name_of_some(name)) == 3
            with Lab():
                assert name_of_some(name) == []
                wait_for_ends(processes)  # nobody's children: killed, and gone a moment later
            assert len(name_of_some(living.name)) == 3
            assert (namespaces.FOLDER / other).exists()
        finally:
            subprocess.run(["ip", "netns", "del", other], check=True)


def test_two_labs_run_beside_one_another() -> None:
    with Lab() as one, Lab(DELAYED) as two:
        for lab in (one, two):
            address = lab.hosts[1].address
            answer = lab.hosts[1].run(["ip", "-brief", "address", "show", "eth0"]).stdout
            assert f"{address}/24" in answer
        assert one.name != two.name
