"""The processes of a benchmark: what is missing, what fails, and that nothing is ever left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from benchmarks.netlab.requirements import why_unavailable
from comfy_cluster.benchmarks.errors import BenchmarkError, Unavailable
from comfy_cluster.benchmarks.instances import Instances, loopback_sites
from comfy_cluster.benchmarks.measure import measure, open_ways
from comfy_cluster.benchmarks.transfers import point_to_point

pytestmark = pytest.mark.integration

TIMEOUT = 60.0  # seconds; a bound for a broken build
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bare_environ(tmp_path: Path) -> Mapping[str, str]:
    """Without iperf3, and with a pyzmq that cannot be loaded."""
    (tmp_path / "zmq.py").write_text("raise ImportError('no zmq')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "PATH": str(tmp_path)}


def test_missing_ways_are_named_and_a_dead_instance_is_an_error(
    bare_environ: Mapping[str, str],
) -> None:
    with Instances(loopback_sites(2), bare_environ) as instances:
        opened = open_ways(instances, ["pyzmq", "tcp", "iperf3"])
        assert opened.names == ("tcp",)
        assert opened.missing["pyzmq"].startswith("pyzmq is not installed: pip install")
        assert opened.missing["iperf3"].startswith("iperf3 is not installed")
        with pytest.raises(Unavailable, match="pyzmq"):  # a reason is no failure: they go on
            instances.call("make", "pyzmq")
        results = measure(instances, point_to_point(0.1), opened.names, rounds=1)
        assert [each.way for each in results] == ["tcp"]

        processes = [psutil.Process(each) for each in instances.process_ids]
        processes[1].kill()
        with pytest.raises(BenchmarkError, match=r"Instance 1 failed in begin: .* SIGKILL"):
            measure(instances, point_to_point(0.1), opened.names, rounds=1)
        assert psutil.wait_procs(processes, TIMEOUT)[1] == []


def test_what_an_instance_raises_is_told_with_its_index() -> None:
    with Instances(loopback_sites(1), os.environ) as instances:
        with pytest.raises(
            BenchmarkError, match=r"Instance 0 failed in connect \(no-way\): KeyError"
        ):
            instances.call("connect", "no-way", [], way="no-way")
        with pytest.raises(BenchmarkError, match="Instance 0 failed in begin"):
            instances.call("begin", point_to_point(0.1))


def children_of(process: subprocess.Popen[bytes], count: int) -> list[psutil.Process]:
    """Its children, once there are so many that run a benchmark's instance."""
    parent = psutil.Process(process.pid)
    while True:
        found = [
            child
            for child in parent.children(recursive=True)
            if "comfy_cluster.benchmarks.instance" in _command_of(child)
        ]
        if len(found) >= count:
            return found
        assert process.poll() is None, "the command ended before its instances had started"


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def command() -> Iterator[subprocess.Popen[bytes]]:
    """A benchmark that goes on for a long time."""
    arguments = ["bench", "point-to-point", "--megabytes", "1", "--rounds", "1000", "--way", "tcp"]
    process = subprocess.Popen(
        [sys.executable, "-m", "comfy_cluster.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C is sent in another way there")
def test_an_interrupt_leaves_nothing(command: subprocess.Popen[bytes]) -> None:
    children = children_of(command, 2)
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=TIMEOUT)
    assert command.returncode == 130, errors
    assert b"Interrupted" in errors
    assert b"Traceback" not in errors
    assert psutil.wait_procs(children, TIMEOUT)[1] == []


def test_an_interrupt_while_a_thread_starts_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    readers: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        readers.append(thread)
        if len(readers) == 2:
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    instances = Instances(loopback_sites(2), os.environ)
    with pytest.raises(KeyboardInterrupt), instances:
        pass
    assert all(each.returncode is not None for each in instances._processes)
    assert not readers[0].is_alive()


def test_a_killed_benchmark_leaves_nothing(command: subprocess.Popen[bytes]) -> None:
    children = children_of(command, 2)
    command.kill()
    assert psutil.wait_procs(children, TIMEOUT)[1] == []


def test_instances_run_in_network_namespaces() -> None:
    reason = why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    command = [sys.executable, "-m", "benchmarks.between_namespaces", "--json", "--rounds", "1"]
    ways = ["--way", "ours-udp", "gloo", "tcp", "ceiling"]
    done = subprocess.run(
        [*command, "--megabytes", "0.5", *ways], cwd=ROOT, capture_output=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr.decode()
    (table,) = json.loads(done.stdout)["tables"]
    assert {"ours-udp", "gloo", "tcp"} <= {each["way"] for each in table["ways"]}
