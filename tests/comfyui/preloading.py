"""ComfyUI processes that start in two seconds in place of ten.

How it works. Nearly all of that time ComfyUI imports torch and its like. So one process of its
Python imports them once, and forks for each start; the fork then runs ComfyUI's main.py as the
program. Its exit code is asked for there. Linux only: elsewhere such forks are not safe.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.comfyui.place import ComfyPlace

THREAD_VARIABLES = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_POLL_INTERVAL = 0.02

# What main.py imports before it serves, by how long it takes. `transformers` loads what it is asked
# for only, and most of that is asked for by these.
_PRELOADER = r"""
import importlib, json, os, runpy, sys

for name in (
    "torch", "torch._dynamo", "torchvision", "transformers", "transformers.models.t5.modeling_t5",
    "numpy", "scipy.stats", "scipy.integrate", "PIL.Image", "aiohttp.web", "sqlalchemy.orm",
    "alembic.command", "safetensors.torch", "einops", "torchsde", "spandrel", "av", "pydantic",
    "yaml", "requests", "tqdm.auto", "kornia.color",
):
    try:
        importlib.import_module(name)
    except Exception:
        pass  # another version of ComfyUI needs other ones

print("ready", flush=True)
lifeline = int(sys.argv[1])
for line in sys.stdin:
    order = json.loads(line)
    if isinstance(order, int):
        pid, status = os.waitpid(order, os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    instance = os.fork()
    if not instance:
        break
    print(instance, flush=True)
else:
    sys.exit(0)

os.setsid()
log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
for source, target in ((lifeline, 0), (log, 1), (log, 2)):
    os.dup2(source, target)
os.close(log)
os.close(lifeline)
os.chdir(order["folder"])
os.environ.clear()
os.environ.update(order["environ"])
sys.argv = order["arguments"]
sys.path[0] = order["folder"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ForkedProcess:
    """What tests need of `subprocess.Popen`, of a child of the preloader."""

    def __init__(self, pid: int, code_of: Callable[[int], int | None]) -> None:
        self.pid = pid
        self._code_of = code_of
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, as Popen's `returncode`; None while it runs."""
        if self._code is None:
            self._code = self._code_of(self.pid)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """TimeoutExpired: it still runs."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(_POLL_INTERVAL)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Preloader:
    """Starts ComfyUI processes of one place. They and it end with this process."""

    def __init__(self, place: ComfyPlace, environ: Mapping[str, str]) -> None:
        # Whoever has the other end sees its end when this process ends, however it does.
        lifeline, self._held = os.pipe()
        self._process = subprocess.Popen(
            [str(place.python), "-c", _PRELOADER, str(lifeline)],
            cwd=place.folder,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[lifeline],
            start_new_session=True,
            text=True,
        )
        os.close(lifeline)
        self._lock = threading.Lock()
        assert self._answer() == "ready\n", "the preloader does not start"

    def start(
        self, arguments: Sequence[str], *, folder: Path, environ: Mapping[str, str], log: Path
    ) -> ForkedProcess:
        """`arguments`: those of the Python, its program first."""
        order = {
            "arguments": list(arguments),
            "folder": str(folder),
            "environ": dict(environ),
            "log": str(log),
        }
        return ForkedProcess(int(self._ask(order)), self._ask)

    def _ask(self, order: Any) -> Any:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return json.loads(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@functools.cache
def preloader_of(place: ComfyPlace) -> Preloader | None:
    """The one of this process ; None where there can be none."""
    return Preloader(place, {**os.environ, **THREAD_VARIABLES}) if sys.platform == "linux" else None
