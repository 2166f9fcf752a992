"""Handles whose next step runs on a thread pool, which may end before it comes to that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures

import pytest

from comfy_cluster.errors import TransferCancelled
from comfy_cluster.transport.handle import Handle

WAIT = 10.0  # seconds; a bound for a broken build, never waited for in a good one


class Threads:
    """Runs what it is given, or refuses it; drops nothing."""

    def __init__(self) -> None:
        self.pool = futures.ThreadPoolExecutor(2)

    def submit(self, fn: Callable[[], None], /, *, on_dropped: Callable[[str], object]) -> None:
        self.pool.submit(fn)


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads()
    with threads.pool:
        yield threads


class HeldExecutor:
    """Keeps what it is given until it is told to run or to drop it."""

    def __init__(self) -> None:
        self.tasks: list[Callable[[], None]] = []
        self.drops: list[Callable[[str], object]] = []

    def submit(self, fn: Callable[[], None], /, *, on_dropped: Callable[[str], object]) -> None:
        self.tasks.append(fn)
        self.drops.append(on_dropped)


def test_then_maps_on_the_executor(threads: Threads) -> None:
    handle: Handle[int] = Handle("sum")
    names: list[str] = []

    def double(value: int) -> int:
        names.append(threading.current_thread().name)
        return value * 2

    mapped = handle.then(double, threads)
    handle.set_result(4)
    assert mapped.result(WAIT) == 8
    assert names != [threading.current_thread().name]


def test_then_on_a_closed_executor_fails(threads: Threads) -> None:
    threads.pool.shutdown()
    mapped = Handle.completed(1).then(str, threads)
    assert isinstance(mapped.exception(WAIT), TransferCancelled)


def test_a_result_whose_step_is_cancelled_before_it_runs_is_given_back() -> None:
    dropped: list[int] = []
    executor = HeldExecutor()
    mapped = Handle.completed(1).then(str, executor, on_dropped=dropped.append)
    mapped.cancel()
    assert dropped == []
    executor.tasks.pop()()
    assert dropped == [1]


def test_a_result_that_a_closed_executor_refuses_is_given_back(
    threads: Threads,
) -> None:
    dropped: list[int] = []
    threads.pool.shutdown()
    Handle.completed(1).then(str, threads, on_dropped=dropped.append)
    assert dropped == [1]


def test_a_step_that_the_executor_drops_fails_who_waits_and_gives_the_result_back() -> None:
    dropped: list[int] = []
    executor = HeldExecutor()
    first = Handle.completed(1, "fan-in").then(str, executor, on_dropped=dropped.append)
    second: Handle[int] = Handle.completed(2).and_then(Handle.completed, executor)
    for drop in executor.drops:
        drop("it was closed")
    with pytest.raises(TransferCancelled, match=r"^fan-in: it was closed"):
        first.result(0)
    assert isinstance(second.exception(0), TransferCancelled)
    assert dropped == [1]


def test_a_cancelled_step_that_the_executor_drops_gives_the_result_back() -> None:
    dropped: list[int] = []
    executor = HeldExecutor()
    mapped = Handle.completed(1).then(str, executor, on_dropped=dropped.append)
    mapped.cancel("not needed")
    executor.drops.pop()("it was closed")
    assert dropped == [1]
    with pytest.raises(TransferCancelled, match="not needed"):
        mapped.result(0)
