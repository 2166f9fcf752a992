"""Counts the system calls of some processes with `perf`, where that is installed and permitted.

perf counts in the kernel, so the processes run at full speed. It stays attached during one round
that is not timed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import TextIO

EVENT = "raw_syscalls:sys_enter"
END_TIMEOUT = 10.0  # seconds


class SyscallCount:
    """The result of `counting`; None where it could not be counted."""

    value: int | None = None


@contextlib.contextmanager
def counting(process_ids: Sequence[int]) -> Iterator[SyscallCount]:
    """Counts while the context is open; the value is there after it."""
    count = SyscallCount()
    if shutil.which("perf") is None or not hasattr(os, "mkfifo"):
        yield count
        return
    control_read, control_write = os.pipe()
    answer_read, answer_write = os.pipe()
    ids = ",".join(map(str, process_ids))
    command = ["perf", "stat", "-x", ",", "-e", EVENT, "-p", ids, "-D", "-1"]
    command += ["--control", f"fd:{control_read},{answer_write}"]
    process = subprocess.Popen(
        command,
        pass_fds=(control_read, answer_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl+C is for the benchmark, which ends this too
    )
    os.close(control_read)
    os.close(answer_write)
    with os.fdopen(control_write, "w") as control, os.fdopen(answer_read) as answers:
        try:
            is_counting = _said(control, answers, "enable")
            yield count
            if is_counting and _said(control, answers, "disable"):
                process.send_signal(signal.SIGINT)  # then it writes what it has counted
                count.value = _parse(process.communicate(timeout=END_TIMEOUT)[1])
        except subprocess.TimeoutExpired:
            count.value = None
        finally:
            process.kill()
            process.communicate()


def _said(control: TextIO, answers: TextIO, word: str) -> bool:
    """Tells perf, and waits until it has obeyed. False: perf has ended."""
    try:
        control.write(f"{word}\n")
        control.flush()
        return bool(answers.readline())
    except OSError:
        return False


def _parse(output: str) -> int | None:
    for line in output.splitlines():
        first, *rest = line.split(",")
        if EVENT in rest and first.isdigit():
            return int(first)
    return None
