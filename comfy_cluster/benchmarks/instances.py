"""The processes of a benchmark: started, given commands, and ended in every case.

One design for all rows, and for measurements elsewhere (`Site`). A process ends when the pipe to it
is closed, which the operating system does if this process dies.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from comfy_cluster.benchmarks.commands import Command, Failure, Refusal, Reply
from comfy_cluster.benchmarks.errors import BenchmarkError, Unavailable
from comfy_cluster.benchmarks.place import TIMEOUT, Place

INSTANCE_COMMAND = (sys.executable, "-m", "comfy_cluster.benchmarks.instance")
LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACES = ("lo", "lo0")  # Linux; macOS and the BSDs
COMMAND_MARGIN = 60.0  # seconds above the time limit of the ways themselves
START_TIMEOUT = 60.0  # seconds, and as many more for each instance:
START_TIMEOUT_PER_INSTANCE = 10.0  # loading torch takes 3 s of a core that may be shared
SHOWN_LINE_COUNT = 20


@dataclass(frozen=True, slots=True)
class Site:
    """Where one instance runs."""

    address: str = LOOPBACK
    """IP literal that it binds, and that the others use."""
    command_prefix: tuple[str, ...] = ()
    """What the command is started by, such as `("ip", "netns", "exec", "left")`."""
    interface: str | None = None
    """The network interface that has the address; gloo wants to be told. None: the loopback's."""


def loopback_sites(count: int) -> list[Site]:
    """All on this machine."""
    return [Site() for _ in range(count)]


class Instances:
    """A process for each site; instance 0 is the first. A context manager. One thread uses it."""

    def __init__(
        self, sites: Sequence[Site], environ: Mapping[str, str], *, timeout: float = TIMEOUT
    ) -> None:
        """`environ`: variables of the processes; our engine's settings hold there too.

        `timeout`: seconds for a round, or for a way to connect; slow links need more.
        """
        self.sites = list(sites)
        self._timeout = timeout
        self._environ = environ
        self._processes: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        self._replies: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._outputs: list[IO[bytes]] = []
        """What each writes to its standard error: files without a name, so that none is left."""
        self._stack = contextlib.ExitStack()
        self._is_ended = False
        self._opened: dict[str, str | None] = {}
        self._round_number = 0
        self.process_ids: list[int] = []
        """Of the instances themselves, not of what their commands are started by."""

    def __len__(self) -> int:
        return len(self.sites)

    def __enter__(self) -> Instances:
        try:
            for index in range(len(self.sites)):
                self._start(index)
            timeout = START_TIMEOUT + START_TIMEOUT_PER_INSTANCE * len(self)
            self.process_ids = self.call("process_id", timeout=timeout)
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
        self.kill()

    def _start(self, index: int) -> None:
        site = self.sites[index]
        output = tempfile.TemporaryFile()  # noqa: SIM115 (the stack closes it)
        self._stack.callback(output.close)
        self._outputs.append(output)
        process = subprocess.Popen(
            [*site.command_prefix, *INSTANCE_COMMAND],
            env=_environ_at(site, self._environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,  # Ctrl+C is for this process, which then ends the others
        )
        self._processes.append(process)
        place = Place(index, tuple(each.address for each in self.sites), self._timeout)
        self._write(index, place)
        reader = threading.Thread(target=self._read, args=(index, process), daemon=True)
        self._readers.append(reader)
        reader.start()

    def kill(self) -> None:
        """Ends all of them now, and what they started. Twice is fine."""
        if self._is_ended:
            return  # their process ids may be others' by now
        self._is_ended = True
        for process in self._processes:
            with contextlib.suppress(OSError):
                if process.stdin is not None:
                    process.stdin.close()
            _kill_group(process)
        for process in self._processes:
            process.wait()
        for reader in self._readers:
            if reader.is_alive():  # an interrupt may come before it has started
                reader.join()
        for process in self._processes:
            if process.stdout is not None:
                process.stdout.close()
        self._stack.close()

    # Commands.

    def next_round(self) -> int:
        """A number that no round of these instances had before."""
        self._round_number += 1
        return self._round_number

    def call(
        self, name: str, *arguments: Any, way: str = "", timeout: float | None = None
    ) -> list[Any]:
        """Calls a method of `instance.Instance` on all; what each returned, in their order.

        `timeout`: seconds until all must have answered, if the usual is not enough.

        Unavailable: one of them says so. BenchmarkError: one failed, ended, or does not answer;
        then all are ended, because the others may wait for it.
        """
        what = f"{name} ({way})" if way else name
        for index in range(len(self)):
            self._write(index, Command(name, arguments))
        replies: dict[int, Any] = {}
        deadline = time.monotonic() + (timeout or self._timeout + COMMAND_MARGIN)
        while len(replies) < len(self):
            index, reply = self._next_reply(deadline, what, waiting_for=len(self) - len(replies))
            if isinstance(reply, Failure):
                raise self._failed(index, what, f"{reply.text}\n{reply.traceback}")
            replies[index] = reply
        for reply in replies.values():
            if isinstance(reply, Refusal):
                raise Unavailable(reply.reason)
        return [replies[index].value for index in range(len(self))]

    def _next_reply(self, deadline: float, what: str, *, waiting_for: int) -> tuple[int, Any]:
        try:
            index, reply = self._replies.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self.kill()
            raise BenchmarkError(
                f"{what}: {waiting_for} of {len(self)} instances did not answer in time. Is this "
                "machine very busy, or does a firewall block the addresses "
                f"{', '.join(sorted({site.address for site in self.sites}))}?"
            ) from None
        if not isinstance(reply, Reply | Refusal | Failure):
            raise self._failed(index, what, self._end_text(index))
        return index, reply

    def _failed(self, index: int, what: str, text: str) -> BenchmarkError:
        written = self.written_by(index)
        self.kill()
        return BenchmarkError(f"Instance {index} failed in {what}: {text}\n{written}".rstrip())

    def written_by(self, index: int) -> str:
        """The last lines that an instance wrote to its standard error."""
        output = self._outputs[index]
        if output.closed:
            return ""
        output.seek(0)
        text = output.read().decode(errors="replace")
        return "\n".join(text.rstrip().splitlines()[-SHOWN_LINE_COUNT:])

    def _end_text(self, index: int) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._processes[index].wait(1.0)
            if code < 0:
                with contextlib.suppress(ValueError):
                    return f"its process was killed by {signal.Signals(-code).name}"
            return f"its process ended with exit code {code}"
        return "its process closed the pipe"

    def _write(self, index: int, value: Any) -> None:
        process = self._processes[index]
        assert process.stdin is not None
        # One that is gone is noticed when its reply is missing.
        with contextlib.suppress(OSError, ValueError):
            pickle.dump(value, process.stdin)
            process.stdin.flush()

    def _read(self, index: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        while True:
            try:
                self._replies.put((index, pickle.load(process.stdout)))
            except (EOFError, OSError, ValueError, pickle.UnpicklingError):
                self._replies.put((index, None))
                return

    # Ways.

    def open_way(self, name: str) -> str | None:
        """Opens a way on all instances, if it is not. Returns None, or why it cannot be opened.

        A peer that cannot even connect is left out with that reason; ours is not.
        """
        if name not in self._opened:
            self._opened[name] = self._open_way(name)
        return self._opened[name]

    def _open_way(self, name: str) -> str | None:
        try:
            listening = self.call("make", name, way=name)
            self.call("connect", name, listening, way=name)
        except Unavailable as reason:
            self.call("close_way", name, way=name)
            return str(reason)
        return None

    def close_ways(self) -> None:
        """Closes every way, so that nothing else runs in the processes."""
        for name in [name for name, reason in self._opened.items() if reason is None]:
            self.call("close_way", name, way=name)
        self._opened.clear()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and what it has started: it leads a group of its own."""
    if hasattr(os, "killpg"):
        # Also when it has ended: what it has started may still be there.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _environ_at(site: Site, environ: Mapping[str, str]) -> dict[str, str]:
    interface = site.interface or _loopback_interface()
    added = {} if interface is None else {"GLOO_SOCKET_IFNAME": interface}
    return {**environ, **added, "PYTHONUNBUFFERED": "1"}


def _loopback_interface() -> str | None:
    if not hasattr(socket, "if_nameindex"):
        return None
    names = {name for _, name in socket.if_nameindex()}
    return next((name for name in LOOPBACK_INTERFACES if name in names), None)
