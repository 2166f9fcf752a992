"""Transports in several processes: no leak, an error after a kill, and clean ends of all kinds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clusters import free_ports
from tests.long import IS_LONG

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="signals and /proc"),
]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("transport_worker.py")
WAIT = 90.0  # seconds; a bound for a broken build, never waited for in a good one
PROMISED_END = 2.0  # seconds from a signal, or the end of the script, to the end of the process
ENGINES = {"compiled": "0", "python": "1"}


class WorkerProcess:
    """One `transport_worker.py`; killed if it outlives WAIT, so that no test hangs."""

    def __init__(self, engine: str, prefix: Sequence[str] = (), **options: Any) -> None:
        """`prefix` comes before the command."""
        environ = {name: text for name, text in os.environ.items() if "COMFY_CLUSTER" not in name}
        environ["COMFY_CLUSTER_PURE_PYTHON"] = ENGINES[engine]
        environ["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", str(SCRIPT), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
            cwd=ROOT,
        )
        self._watchdog = threading.Timer(WAIT, self.process.kill)
        self._watchdog.start()

    def read(self) -> dict[str, Any]:
        """The next line that it tells."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"ended without a word: {self.end()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def end(self) -> tuple[int, str]:
        """Waits for its end: exit code, and what is on stderr."""
        _, errors = self.process.communicate()
        return self.process.returncode, errors

    def close(self) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers(
    count: int, engine: str, mode: str, carrier: dict[str, Any], **options: Any
) -> Iterator[list[WorkerProcess]]:
    if engine == "compiled":
        pytest.importorskip("comfy_cluster._fastpath", reason="the compiled engine is not built")
    ports = free_ports(count)
    started = [
        WorkerProcess(engine, index=index, ports=ports, mode=mode, **carrier, **options)
        for index in range(count)
    ]
    try:
        yield started
    finally:
        for worker in started:
            worker.close()


@pytest.mark.parametrize(
    ("count", "engine", "rounds"),
    [
        (4, "compiled", 30),
        (2, "python", 20),
        *([(2, "compiled", 40), (8, "compiled", 12), (4, "python", 12)] if IS_LONG else []),
    ],
)
def test_rounds_of_random_sizes_leak_nothing(
    count: int, engine: str, rounds: int, carrier: dict[str, Any]
) -> None:
    with workers(
        count, engine, "rounds", carrier, rounds=rounds, warm_up=rounds // 3, seed=count
    ) as processes:
        answers = [process.read() for process in processes]
        ends = [process.end() for process in processes]
    assert ends == [(0, "")] * count
    for answer in answers:
        before, after = answer["before"], answer["after"]
        assert after["threads"] == before["threads"]
        assert after["descriptors"] <= before["descriptors"]
        assert after["private_memory"] - before["private_memory"] < 24 << 20, (
            "a round moves megabytes: some stay"
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_process_is_named_by_the_others(engine: str, carrier: dict[str, Any]) -> None:
    with workers(3, engine, "until_lost", carrier) as processes:
        for process in processes:
            assert process.read() == {"state": "running"}
        processes[2].process.send_signal(signal.SIGKILL)
        for process in processes[:2]:
            assert "instance 2" in process.read()["lost"]["2"]
            code, errors = process.end()
            assert code == 0
            assert errors.startswith("Instance timeout: instance 2 ")  # logged, and nothing else
            assert errors.count("\n") <= 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("mode", "number", "code"),
    [
        ("exit", None, 0),
        ("signal", signal.SIGTERM, -signal.SIGTERM),
        ("handled_signal", signal.SIGTERM, 3),
        ("waiting", signal.SIGTERM, 3),
    ],
)
def test_end_with_transfers_in_flight_is_quick_and_quiet(
    engine: str, mode: str, number: signal.Signals | None, code: int, carrier: dict[str, Any]
) -> None:
    with workers(2, engine, mode, carrier) as processes:
        for process in processes:
            assert process.read() == {"state": "running"}
        started = time.monotonic()
        for process in processes:
            if number is None:
                process.write("end")
            else:
                process.process.send_signal(number)
        ends = [process.end() for process in processes]
        took = time.monotonic() - started
    assert ends == [(code, "")] * 2
    assert took < PROMISED_END
