"""A receiver that is stopped in the middle of a transfer, and continued seconds later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from comfy_cluster import fastpath
from tests.endurance import slow_receiver
from tests.integration.clusters import free_ports

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 5.0
PATIENT, DEFAULT = 30.0, 3.0  # INSTANCE_TIMEOUT in seconds
WAIT = 90.0  # seconds; a bound for a broken build
LOOK_INTERVAL = 0.1  # seconds

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="stops itself by signal; /proc"),
    pytest.mark.skipif(
        not fastpath.HAS_LOOPS, reason="the pure-Python engine is too slow for this much"
    ),
]


@contextmanager
def two_processes(instance_timeout: float) -> Iterator[list[subprocess.Popen[str]]]:
    ports = map(str, free_ports(2))
    words = [str(instance_timeout), *ports]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.endurance.slow_receiver", str(index), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for index in range(2)
    ]
    watchdog = threading.Timer(WAIT, kill_all, [processes])
    watchdog.start()
    try:
        yield processes
    finally:
        watchdog.cancel()
        kill_all(processes)
        for process in processes:
            process.communicate()


def kill_all(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()  # also ends one that is stopped


def read(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "it ended without a word: its error is above"
    answer: dict[str, Any] = json.loads(line)
    return answer


def wait_until_stopped(process: subprocess.Popen[str]) -> None:
    """The receiver stops itself, in the middle of what it receives."""
    told = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert told is not None and told.si_status == signal.SIGSTOP, "it ended before it was stopped"


def largest_resident(process: subprocess.Popen[str], seconds: float) -> int:
    """Bytes, of many looks over so many seconds."""
    watched, ends_at, largest = psutil.Process(process.pid), time.monotonic() + seconds, 0
    while time.monotonic() < ends_at:
        largest = max(largest, watched.memory_info().rss)
        time.sleep(LOOK_INTERVAL)
    return largest


def test_stopped_receiver_neither_fails_the_transfer_nor_grows_the_sender() -> None:
    with two_processes(PATIENT) as (sender, receiver):
        wait_until_stopped(receiver)
        before = psutil.Process(sender.pid).memory_info().rss
        while_stopped = largest_resident(sender, STOP_SECONDS)
        continued_at = time.monotonic()
        receiver.send_signal(signal.SIGCONT)
        received, sent = read(receiver), read(sender)
    print(sent, before, while_stopped)
    assert received == {"is_identical": True}
    assert sent["error"] is None
    assert sent["done_at"] > continued_at, "it was all there before the receiver stopped"
    assert while_stopped - before < slow_receiver.SIZE // 20
    assert sent["sent_over_size"] < 1.25, (
        "what a stopped receiver cannot take must not be sent anew"
    )


def test_receiver_stopped_for_longer_than_the_timeout_is_lost_and_comes_back() -> None:
    with two_processes(DEFAULT) as (sender, receiver):
        wait_until_stopped(receiver)
        sent = read(sender)  # while it is still stopped
        receiver.send_signal(signal.SIGCONT)
        received = read(receiver)
        again = [read(process) for process in (sender, receiver)]
    assert "instance 1" in sent["error"] and "silent" in sent["error"]
    assert "instance 0" in received["error"]
    assert again == [{"is_connected_again": True}] * 2
