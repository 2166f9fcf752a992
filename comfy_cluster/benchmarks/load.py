"""What else an instance does while it transfers: nothing, pure Python, or torch on all cores."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from enum import Enum

BUSY_PROCESS = """
import os, sys, threading
def count():
    while True:
        sum(range(100_000))
threading.Thread(target=count, daemon=True).start()
sys.stdin.read()
os._exit(0)
"""
MATRIX_SIDE = 512  # 1 MB a matrix: several steps of it fill the time between two switches


class Load(Enum):
    """Names a load."""

    IDLE = "idle"
    PYTHON = "a busy Python thread"
    """Takes the GIL whenever it can: the worst that a node pack can do."""
    PYTHON_ELSEWHERE = "a busy Python process beside each"
    """The same work for the cores, and no GIL taken: what is lost beyond this, the GIL costs."""
    TORCH = "torch on all cores"
    """As a sampler on the CPU: the GIL is free most of the time, no core is."""


class LoadThread:
    """Runs one load until it is stopped. Of an instance's main thread."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._stop = threading.Event()
        steps: dict[Load, Callable[[], object]] = {Load.PYTHON: _count, Load.TORCH: _multiply}
        step = steps.get(load)
        self._thread = None if step is None else threading.Thread(target=self._run, args=(step,))
        self._process: subprocess.Popen[bytes] | None = None
        if load is Load.PYTHON_ELSEWHERE:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", BUSY_PROCESS], stdin=subprocess.PIPE
            )
        if self._thread is not None:
            self._thread.daemon = True
            self._thread.start()

    def stop(self) -> None:
        """Returns when the load has ended."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._process is not None:
            self._process.communicate()  # it ends with its input, also when this process dies

    def _run(self, step: Callable[[], object]) -> None:
        while not self._stop.is_set():
            step()


def _count() -> int:
    total = 0
    for number in range(100_000):
        total += number
    return total


def _multiply() -> object:
    import torch  # only instances have it loaded

    matrix = torch.full((MATRIX_SIDE, MATRIX_SIDE), 1e-3)
    for _ in range(16):
        matrix = matrix @ matrix
    return matrix
