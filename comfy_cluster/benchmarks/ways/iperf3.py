"""iperf3 over TCP, where it is installed: as many bytes as the tensor has, in one connection.

Not the same bytes: it sends one buffer of its own over and over, which stays in the caches, and
throws away what it receives. The time is what its receiver measured. CPU time includes the start
of the program. Point to point only.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import torch

from comfy_cluster.benchmarks.errors import BenchmarkError, Unavailable
from comfy_cluster.benchmarks.place import Place
from comfy_cluster.benchmarks.ways.base import Way, Work

RETRY_INTERVAL = 0.02  # seconds until the client looks again whether the server is there


class Iperf3(Way):
    """The receiver starts a server for one test, the sender a client."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        if shutil.which("iperf3") is None:
            raise Unavailable("iperf3 is not installed (Debian and Ubuntu: apt-get install iperf3)")
        self._server: subprocess.Popen[str] | None = None
        self._address = ("", 0)
        self._seconds: float | None = None

    def listen(self) -> int:
        """A TCP port that is free at this moment."""
        with socket.create_server((self.place.address, 0)) as sock:
            port: int = sock.getsockname()[1]
            return port

    def connect(self, listening: Sequence[int]) -> None:
        self._listen_port = listening[self.place.index]
        peer = self.place.peers[0]
        self._address = (self.place.addresses[peer], listening[peer])

    def prepare(self, work: Work) -> None:
        self._seconds = None
        if work.tensors.wanted:
            self._server = _start(["-s", "-1", "-B", self.place.address], self._listen_port)

    def run(self, work: Work) -> None:
        if self._server is not None:
            result = _result_of(self._server, self.place.timeout)
            self._server = None
        else:
            result = self._run_client(work.transfer.part_bytes)
        received = _checked(result)["end"]["sum_received"]
        share = received["bytes"] / work.transfer.part_bytes  # it counts whole blocks only
        self._seconds = received["seconds"] / share if share else None

    def _run_client(self, size: int) -> dict[str, Any]:
        address, port = self._address
        deadline = time.monotonic() + self.place.timeout
        while True:
            result = _result_of(_start(["-c", address, "-n", str(size)], port), self.place.timeout)
            if "unable to connect" not in result.get("error", "") or time.monotonic() > deadline:
                return result
            time.sleep(RETRY_INTERVAL)

    def received(self, work: Work) -> dict[int, torch.Tensor]:
        """Nothing: iperf3 sends bytes of its own."""
        return {}

    def measured_seconds(self) -> float | None:
        return self._seconds

    def close(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()


def _start(arguments: list[str], port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["iperf3", *arguments, "-p", str(port), "-J"], stdout=subprocess.PIPE, text=True
    )


def _result_of(process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise BenchmarkError(f"iperf3 did not end within {timeout:g} s") from None
    result: dict[str, Any] = json.loads(output)
    return result


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    if "error" in result:
        raise BenchmarkError(f"iperf3: {result['error']}")
    return result
