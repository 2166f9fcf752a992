"""One instance of a benchmark, as a process: `python -m comfy_cluster.benchmarks.instance`.

Started by `instances.py`, which writes pickled commands to its standard input and reads pickled
replies from its standard output. It ends when its input does: at the end of the run, and also when
the benchmark's process dies, whatever this instance waits for.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch

from comfy_cluster.benchmarks.commands import Checks, Command, Failure, Outcome, Refusal, Reply
from comfy_cluster.benchmarks.errors import Unavailable
from comfy_cluster.benchmarks.form_rounds import measure_forms
from comfy_cluster.benchmarks.forms import Form, Specimen
from comfy_cluster.benchmarks.load import Load, LoadThread
from comfy_cluster.benchmarks.place import Place
from comfy_cluster.benchmarks.tensors import Tensors, check_value, touch
from comfy_cluster.benchmarks.transfers import Transfer
from comfy_cluster.benchmarks.ways import ALL_WAYS, make_way
from comfy_cluster.benchmarks.ways.base import Way, Work

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class Instance:
    """The commands. All but the reading of them happens on the main thread."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._ways: dict[str, Way] = {}
        self._tensors: Tensors | None = None
        self._work: Work | None = None
        self._load = LoadThread(Load.IDLE)

    def process_id(self) -> int:
        return os.getpid()

    # Ways.

    def make(self, name: str) -> Any:
        """Makes a way and lets it listen. Returns what the others must know."""
        with _optional(name):
            way = make_way(name, self._place)
            self._ways[name] = way
            return way.listen()

    def connect(self, name: str, listening: list[Any]) -> None:
        with _optional(name):
            self._ways[name].connect(listening)

    def close_way(self, name: str) -> None:
        way = self._ways.pop(name, None)
        if way is not None:
            way.close()

    # Rounds.

    def begin(self, transfer: Transfer) -> None:
        """Makes the tensors of the rounds that follow."""
        self._tensors = None  # the old ones first: they are large
        self._tensors = Tensors(transfer, self._place.index)

    def end(self) -> None:
        self._tensors = self._work = None

    def prepare(self, name: str, number: int, is_first: bool) -> None:
        assert self._tensors is not None, "begin comes first"
        self._tensors.mark(number)
        if is_first:
            self._tensors.clear()
        self._work = Work(self._tensors.transfer, self._tensors, number)
        self._ways[name].prepare(self._work)

    def go(self, name: str, start_at: float, lead: float) -> Outcome:
        """One round, begun at a moment of the machine's monotonic clock.

        Who only receives begins `lead` seconds earlier: a receiver that has other things to do
        first is not what is measured.
        """
        way, work = self._ways[name], self._prepared
        own_start_at = start_at if work.tensors.own else start_at - lead
        time.sleep(max(0.0, own_start_at - time.monotonic()))
        used, called_at = cpu_seconds(), time.monotonic()
        way.run(work)
        done_at = time.monotonic()
        return Outcome(called_at, done_at, cpu_seconds() - used, way.measured_seconds())

    def check(self, name: str, is_full: bool) -> Checks:
        """After the round: what is here, and lets go of what arrived."""
        way, work = self._ways[name], self._prepared
        received = way.received(work)
        touch_seconds = _timed_touch(received)
        own = {part: check_value(each, is_full=is_full) for part, each in work.tensors.own.items()}
        found = {part: check_value(each, is_full=is_full) for part, each in received.items()}
        is_checkable = received.keys() == set(work.tensors.wanted)
        received.clear()
        way.finish(work)
        return Checks(own, found, touch_seconds, is_checkable, way.counters())

    @property
    def _prepared(self) -> Work:
        assert self._work is not None, "prepare comes first"
        return self._work

    # Codecs alone.

    def forms(self, specimen: Specimen, codecs: list[str], rounds: int) -> list[Form]:
        """What codecs make of a tensor: instance 0 does it, the others would disturb it."""
        return measure_forms(specimen, codecs, rounds) if self._place.index == 0 else []

    # Load, idleness, messages.

    def set_load(self, load: Load) -> None:
        self._load.stop()
        self._load = LoadThread(load)

    def idle(self, seconds: float) -> float:
        """The share of a core that this process uses while it has nothing to do."""
        used, started_at = cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return (cpu_seconds() - used) / (time.monotonic() - started_at)

    def message_round_trips(self, name: str, count: int) -> list[float]:
        """Seconds of each; instance 0's are those that count."""
        if self._place.index == 0:
            return self._ways[name].round_trips(count)
        if self._place.index == 1:
            self._ways[name].answer_round_trips(count)
        return []

    def message_stream(self, name: str, count: int) -> float:
        """Seconds for all; instance 0's are those that count."""
        if self._place.index == 0:
            return self._ways[name].stream(count)
        if self._place.index == 1:
            self._ways[name].answer_stream(count)
        return 0.0


@contextlib.contextmanager
def _optional(name: str) -> Iterator[None]:
    """A peer that cannot be opened is left out of the comparison; ours must work."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if ALL_WAYS[name].is_ours:
            raise
        raise Unavailable(f"cannot be opened: {error}") from error


def _timed_touch(tensors: Mapping[int, torch.Tensor]) -> float:
    started_at = time.monotonic()
    for tensor in tensors.values():
        touch(tensor)
    return time.monotonic() - started_at


def cpu_seconds() -> float:
    """CPU time of this process so far, and of the children that it has waited for."""
    used = time.process_time()
    if resource is not None:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        used += children.ru_utime + children.ru_stime
    return used


def main() -> None:
    """Serves commands until the input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the replies
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    place: Place = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_read, args=(commands,), name="commands", daemon=True).start()
    instance = Instance(place)
    while True:
        command = commands.get()
        _write(replies, _serve(instance, command))


def _read(commands: queue.SimpleQueue[Command]) -> None:
    while True:
        try:
            commands.put(pickle.load(sys.stdin.buffer))
        except (EOFError, pickle.UnpicklingError):
            _end()


def _end() -> None:
    """Ends this process at once, whatever its main thread waits for, and what it has started."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _serve(instance: Instance, command: Command) -> Reply | Refusal | Failure:
    try:
        return Reply(getattr(instance, command.name)(*command.arguments))
    except Unavailable as error:
        return Refusal(str(error))
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def _write(replies: BinaryIO, reply: Reply | Refusal | Failure) -> None:
    pickle.dump(reply, replies)
    replies.flush()


if __name__ == "__main__":
    main()
