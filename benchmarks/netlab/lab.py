"""Lab: some hosts around a switch, each a network namespace with its own link.

Makes them, starts processes in them, reads the counters, and removes everything at its end: after
an exception, SIGINT or SIGTERM at once, after SIGKILL when the next lab starts. Only for root.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from benchmarks.netlab import counters, namespaces, wiring
from benchmarks.netlab.profile import LinkProfile
from benchmarks.netlab.relay_build import READY, build_relay, relay_command
from benchmarks.netlab.requirements import LabUnavailable, run_command, why_unavailable

ROOT = Path(__file__).parents[2]  # where `python -m benchmarks.netlab...` finds itself


class Host:
    """One host of a lab: a network namespace with an address."""

    def __init__(self, namespace: str, index: int) -> None:
        self.namespace = namespace
        self.index = index
        self.address = wiring.address(index)
        self._processes: list[subprocess.Popen[Any]] = []

    def command(self, arguments: list[str]) -> list[str]:
        """The command line that runs `arguments` in this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def popen(self, arguments: list[str], **options: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` in this host; killed with the lab at the latest."""
        process: subprocess.Popen[Any] = subprocess.Popen(self.command(arguments), **options)
        self._processes.append(process)
        return process

    def python(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        """A module of this project in this host, with pipes for its input and output."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-m", module, *arguments]
        return self.popen(command, text=True, cwd=ROOT, **pipes)

    def run(self, arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """`subprocess.run` in this host, with captured text; CalledProcessError when it fails."""
        settings = {"check": True, "capture_output": True, "text": True, **options}
        done: subprocess.CompletedProcess[str] = subprocess.run(self.command(arguments), **settings)
        return done

    def close(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._processes.clear()


class Lab:
    """A context manager. LabUnavailable: this machine cannot have one; the text says why."""

    def __init__(self, profile: LinkProfile | None = None, *, hosts: int = 2) -> None:
        if not 2 <= hosts <= 64:
            raise ValueError(f"hosts {hosts}: expected 2 to 64")
        self.profile = profile or LinkProfile()
        self.name = namespaces.new_lab_name()
        self.switch = f"{self.name}-switch"
        self.hosts = [Host(f"{self.name}-host{index}", index) for index in range(hosts)]
        self._relay: subprocess.Popen[str] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        reason = why_unavailable()
        if reason is not None:
            raise LabUnavailable(reason)
        namespaces.remove_leftovers()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_sigterm_raises())
            stack.callback(self._remove)
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def counters(self) -> counters.Counters:
        """What the lab did to packets so far, all hosts together."""
        if self._relay is None:
            return counters.of_kernel(self.switch, len(self.hosts))
        names = [host.namespace for host in self.hosts]
        return counters.of_relay(self._relay_stats(), self._relay.pid, names)

    # Building

    def _build(self) -> None:
        count = len(self.hosts)
        for name in (self.switch, *(host.namespace for host in self.hosts)):
            namespaces.add_namespace(name)
        if self.profile.is_relayed:
            self._start_relay()
        else:
            links = wiring.switch_links(self.profile, [host.namespace for host in self.hosts])
            self._batch("ip", self.switch, links)
        for host in self.hosts:
            self._batch("ip", host.namespace, wiring.host_links(self.profile, host.index, count))
            self._batch("tc", host.namespace, wiring.host_queues(self.profile))
        if not self.profile.is_relayed:
            self._make_switch()

    def _make_switch(self) -> None:
        count = len(self.hosts)
        for host in self.hosts:
            offloads = wiring.host_offloads(self.profile)
            if offloads:
                run_command(host.command(["ethtool", "-K", *offloads]))
            for offloads in wiring.switch_offloads(self.profile, host.index):
                run_command(self._in_switch(["ethtool", "-K", *offloads]))
        self._batch("bridge", self.switch, wiring.switch_forwarding(count))
        self._batch("tc", self.switch, wiring.switch_queues(self.profile, count))
        run_command(self._in_switch(["nft", "-f", "-"]), text=wiring.rules(self.profile, count))

    def _batch(self, program: str, namespace: str, text: str) -> None:
        if text:
            run_command([program, "-n", namespace, "-batch", "-"], text=text)

    def _in_switch(self, arguments: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.switch, *arguments]

    # The relay

    def _start_relay(self) -> None:
        names = [host.namespace for host in self.hosts]
        command = relay_command(self.profile, build_relay(), names)
        self._relay = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the lab, which then ends the relay
        )
        if self._relay_line() != READY:
            raise LabUnavailable("the relay did not start; its error is above")

    def _relay_line(self) -> str:
        assert self._relay is not None and self._relay.stdout is not None
        return self._relay.stdout.readline().strip()

    def _relay_stats(self) -> dict[str, int]:
        assert self._relay is not None and self._relay.stdin is not None
        self._relay.stdin.write("\n")
        self._relay.stdin.flush()
        stats: dict[str, int] = json.loads(self._relay_line())
        return stats

    # The end

    def _remove(self) -> None:
        for host in self.hosts:
            host.close()
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
            for stream in (self._relay.stdin, self._relay.stdout):
                if stream is not None:
                    stream.close()
        for name in (*(host.namespace for host in self.hosts), self.switch):
            namespaces.remove_namespace(name)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM, where nobody handles it, becomes an exception: by default nothing is cleaned up."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
