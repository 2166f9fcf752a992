"""Real rendezvous servers: gunicorn with its master and workers, on 127.0.0.1.

    with running_server(tmp_path, STUN_INSTANCE_TIMEOUT="3") as server:
        answer = requests.get(f"{server.url}/health")

Each has a process group of its own, so that nothing of it outlives the test. Without other
settings: a SQLite file in its folder, two workers, no UDP responder.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
START_TIMEOUT = 60.0  # seconds; two on a quiet machine
STOP_TIMEOUT = 20.0
_POLL_INTERVAL = 0.05
_LOG_TAIL = 4000  # characters shown when something fails
# Below the range that systems take ports of outgoing connections from: nobody else gets them
# between the choice of a port and its use, also while a server is started again.
_PORT_RANGE = (18000, 32000)
_FOREIGN_PREFIXES = ("STUN_", "GUNICORN_", "PROMETHEUS_")


@dataclass(frozen=True, slots=True)
class RunningServer:
    """One start of a server. `process` is gunicorn's master, and leads its group."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """What it has logged, and earlier starts in the same folder too."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of this machine that nobody uses at this moment."""
    while True:
        port = random.randrange(*_PORT_RANGE)
        with socket.socket(socket.AF_INET, kind) as attempt, contextlib.suppress(OSError):
            attempt.bind((LOOPBACK, port))
            return port


def start_server(folder: Path, *, port: int | str | None = None, **settings: str) -> RunningServer:
    """Starts gunicorn and waits until it answers; `settings` are environment variables.

    RuntimeError: it does not; its log is in the text. The same folder and port start it again.
    """
    port = free_port() if port is None else int(port)  # a text, so that `**settings` fits too
    log_path = folder / "server.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn"),
                *("-c", "python:stun_server.gunicorn_conf", "stun_server.wsgi:app"),
            ],
            cwd=ROOT,
            env=_environ(folder, port, settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server = RunningServer(f"http://{LOOPBACK}:{port}", port, process, log_path)
    try:
        wait_until_healthy(server)
    except BaseException:
        kill_server(server)
        raise
    return server


def _environ(folder: Path, port: int, settings: dict[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN_PREFIXES) and not name.lower().endswith("_proxy")
    }
    defaults = {
        "STUN_SERVER_HOST": LOOPBACK,
        "STUN_SERVER_PORT": str(port),
        "STUN_UDP_PORT": "off",
        "STUN_STORE": f"sqlite:///{folder / 'registry.sqlite3'}",
        "TMPDIR": str(folder),  # what a killed one leaves behind goes with the test's folder
        "PYTHONUNBUFFERED": "1",
    }
    return kept | defaults | settings


def wait_until_healthy(server: RunningServer, timeout: float = START_TIMEOUT) -> None:
    """RuntimeError: it has ended, or has not answered in time."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and server.process.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{server.url}/health", timeout=2.0) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(_POLL_INTERVAL)
    status = server.process.poll()
    what = f"ended with {status}" if status is not None else f"did not answer in {timeout:g} s"
    raise RuntimeError(f"the server {what}:\n{server.log[-_LOG_TAIL:]}")


def stop_server(server: RunningServer, timeout: float = STOP_TIMEOUT) -> int:
    """Ends it as an operator does (SIGTERM to the master), all of it; the master's status."""
    if server.process.poll() is None:
        server.process.terminate()
    try:
        return server.process.wait(timeout)
    finally:
        kill_server(server)  # what is left, which should be nothing


def kill_server(server: RunningServer) -> None:
    """Ends master and workers at once, as the loss of the machine would."""
    workers: list[psutil.Process] = []
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        workers = psutil.Process(server.process.pid).children(recursive=True)
        os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(STOP_TIMEOUT)
    psutil.wait_procs(workers, STOP_TIMEOUT)  # until then the system accepts connections for them


@contextlib.contextmanager
def running_server(
    folder: Path, *, port: int | str | None = None, **settings: str
) -> Iterator[RunningServer]:
    """A server for as long as the block lasts."""
    server = start_server(folder, port=port, **settings)
    try:
        yield server
    finally:
        stop_server(server)
    assert "Exception in thread" not in server.log
