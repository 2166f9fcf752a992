"""The demo's follower processes: started, watched, and ended in every case.

Knows nothing of images or clusters: a follower is a child process with its settings in its
environment. The leader, which is the command's own process, is the only user.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from comfy_cluster.errors import PeerLost

FOLLOWER_COMMAND = (sys.executable, "-m", "comfy_cluster.cli.follower")
END_TIMEOUT = 3.0  # seconds for a follower that has done its work to leave the cluster
SHOWN_LINE_COUNT = 20  # of what a follower wrote before it ended
# The filter runs on one thread: pools of idle threads would only make the start slower.
_THREAD_VARIABLES = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Followers:
    """Child processes, one for each environment; instance 1 is the first. A context manager.

    They end when the context does: left normally it waits for them, an exception kills them.
    """

    def __init__(
        self,
        environs: Sequence[Mapping[str, str]],
        *,
        command: Sequence[str] = FOLLOWER_COMMAND,
    ) -> None:
        self._environs = environs
        self._command = command
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="comfy-cluster-demo-")

    def __enter__(self) -> Followers:
        try:
            for environ in self._environs:
                self._start(environ)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error_type is None:
                self._end()
        finally:
            self.kill()

    def _start(self, environ: Mapping[str, str]) -> None:
        with self._output_path(len(self._processes) + 1).open("wb") as output:
            process = subprocess.Popen(
                self._command,
                env={**environ, **_THREAD_VARIABLES, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.PIPE,  # its end is the end of the follower, see follower.py
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl+C is for the leader, who ends the others in order
            )
        self._processes.append(process)

    def check(self) -> None:
        """PeerLost if one of them has ended: it names the instance and tells what it wrote."""
        for index, process in enumerate(self._processes, start=1):
            if process.poll() is not None:
                raise PeerLost(self._end_text(index), peer=index)

    def explained(self, error: PeerLost) -> PeerLost:
        """What the user is told when a follower is lost: how it ended if it has, and its words."""
        if error.peer is None:
            return error
        process = self._processes[error.peer - 1]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT)  # one that fails leaves the cluster before it ends
            return PeerLost(self._end_text(error.peer), peer=error.peer)
        return PeerLost(
            f"Instance {error.peer} (process {process.pid}) does not answer any more: {error}. Its "
            f"last lines:\n{self.written_by(error.peer)}",
            peer=error.peer,
        )

    def kill(self) -> None:
        """Ends all of them now. Twice is fine."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            _close_input(process)
        self._folder.cleanup()

    def written_by(self, index: int) -> str:
        """The last lines that a follower wrote, or a text that says that there are none."""
        text = self._output_path(index).read_text(encoding="utf-8", errors="replace")
        lines = text.rstrip().splitlines()
        return "\n".join(lines[-SHOWN_LINE_COUNT:]) or "(it wrote nothing)"

    def _output_path(self, index: int) -> Path:
        return Path(self._folder.name) / f"instance-{index}.log"

    def _end(self) -> None:
        for process in self._processes:
            _close_input(process)
        deadline = time.monotonic() + END_TIMEOUT
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

    def _end_text(self, index: int) -> str:
        process = self._processes[index - 1]
        return (
            f"Instance {index} (process {process.pid}) {_exit_text(process.returncode)} before "
            f"the demo was done. Its last lines:\n{self.written_by(index)}"
        )


def _close_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # the process was faster
            process.stdin.close()


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
