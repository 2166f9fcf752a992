"""Counts the system calls of some processes with `perf`, where that is installed and permitted.

perf counts in the kernel, so the processes run at full speed. It stays attached during one round
that is not timed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

EVENT = "raw_syscalls:sys_enter"
TIMEOUT = 10.0  # seconds for each of perf's answers; then there is no figure


class SyscallCount:
    """The result of `counting`; None where it could not be counted."""

    value: int | None = None


@contextlib.contextmanager
def counting(process_ids: Sequence[int]) -> Iterator[SyscallCount]:
    """Counts while the context is open; the value is there after it."""
    count = SyscallCount()
    if sys.platform != "linux" or shutil.which("perf") is None:
        yield count
        return
    with _Perf(process_ids) as perf:
        is_counting = perf.tell("enable")
        yield count
        if is_counting and perf.tell("disable"):
            count.value = perf.count()


class _Perf:
    """`perf stat`, attached to processes and told by a pipe when to count."""

    def __init__(self, process_ids: Sequence[int]) -> None:
        control, self._control = os.pipe()
        self._answers, answers = os.pipe()
        command = ["perf", "stat", "-x", ",", "-e", EVENT, "-D", "-1"]
        command += ["-p", ",".join(map(str, process_ids)), "--control", f"fd:{control},{answers}"]
        self._process = subprocess.Popen(
            command,
            pass_fds=(control, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl+C is for the benchmark, which ends this too
        )
        os.close(control)
        os.close(answers)

    def __enter__(self) -> _Perf:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        os.close(self._control)
        os.close(self._answers)

    def tell(self, word: str) -> bool:
        """Waits until perf has obeyed. False: it has ended, or does not answer."""
        with contextlib.suppress(OSError):
            os.write(self._control, f"{word}\n".encode())
            readable, _, _ = select.select([self._answers], [], [], TIMEOUT)
            return bool(readable) and bool(os.read(self._answers, 64))
        return False

    def count(self) -> int | None:
        """Ends perf, which then writes what it has counted."""
        self._process.send_signal(signal.SIGINT)
        try:
            return parse_count(self._process.communicate(timeout=TIMEOUT)[1])
        except subprocess.TimeoutExpired:
            return None


def parse_count(output: str) -> int | None:
    """The figure in what `perf stat -x ,` writes; None: there is none, as `<not counted>`."""
    for line in output.splitlines():
        first, *rest = line.split(",")
        if EVENT in rest and first.isdigit():
            return int(first)
    return None
