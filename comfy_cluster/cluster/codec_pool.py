"""The threads that encode and decode: few, started when needed, named, and daemons.

Not a `concurrent.futures.ThreadPoolExecutor`: the interpreter joins that one's threads before any
atexit function runs, so an exit would wait for every encoding that is still queued.
Nor are the daemons left to themselves at an exit: the work under way is interrupted and its thread
ends first, see `codec/interruption.py` for what happens otherwise. One exit function, registered
before any transport's and so called after theirs, does that for all pools: also for one whose first
thread started during the exit, when Python takes no more such functions.
Used by `Cluster` alone; knows nothing of tensors.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from comfy_cluster.codec.interruption import interruptible
from comfy_cluster.errors import TransferCancelled

CLOSE_TIMEOUT = 1.0  # seconds; far longer than a piece of codec work, and an exit may take 2
_CLOSED = "the codec threads were closed"

_pools: weakref.WeakSet[CodecPool] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class _Task:
    run: Callable[[], None]
    on_dropped: Callable[[str], object]


class CodecPool:
    """Runs functions on up to `thread_count` threads, first come, first served. Thread-safe."""

    def __init__(self, thread_count: int) -> None:
        self._thread_count = thread_count
        self._threads: list[threading.Thread] = []
        self._idle_count = 0
        self._tasks: deque[_Task] = deque()
        self._is_closed = False
        self._changed = threading.Condition()
        self._pid = os.getpid()
        _pools.add(self)

    @property
    def thread_count(self) -> int:
        """Threads that were started so far."""
        return len(self._threads)

    def submit(
        self, fn: Callable[[], None], /, *, on_dropped: Callable[[str], object] = lambda _: None
    ) -> None:
        """Runs `fn`, which must not raise, on a thread of the pool.

        RuntimeError: it is closed, or the system gives this process no thread.
        Codec work in it that `close` interrupts raises TransferCancelled. If `fn` has not begun by
        then, whoever closes the pool calls `on_dropped(reason)` instead; it must not raise.
        """
        with self._changed:
            if self._is_closed:
                raise RuntimeError(_CLOSED)
            if len(self._tasks) >= self._idle_count and len(self._threads) < self._thread_count:
                self._start_thread()
            self._tasks.append(_Task(fn, on_dropped))
            self._changed.notify()

    def stop(self) -> None:
        """Drops what has not begun and interrupts the rest; waits for nothing."""
        with self._changed:
            self._is_closed = True
            dropped, self._tasks = self._tasks, deque()
            self._changed.notify_all()
        while dropped:  # and forgotten one by one: each may hold a payload
            dropped.popleft().on_dropped(_CLOSED)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Like `stop`, and waits until the threads have ended, up to `timeout` seconds in all."""
        deadline = time.monotonic() + timeout
        self.stop()
        with self._changed:
            threads = [each for each in self._threads if each is not threading.current_thread()]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start_thread(self) -> None:
        name = f"comfy-cluster-codec-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # those that there are do it all, later
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    @property
    def is_own(self) -> bool:
        """False in a child of a fork: the threads are the parent's, and the lock may be held."""
        return self._pid == os.getpid()

    def _work(self) -> None:
        with interruptible(self._check_open):
            while (task := self._next_task()) is not None:
                task.run()
                del task  # or the last payload would stay alive while this thread is idle

    def _check_open(self) -> None:
        if self._is_closed:
            raise TransferCancelled(_CLOSED)

    def _next_task(self) -> _Task | None:
        with self._changed:
            self._idle_count += 1
            while not self._tasks and not self._is_closed:
                self._changed.wait()
            self._idle_count -= 1
            return self._tasks.popleft() if self._tasks else None


@atexit.register
def _close_all() -> None:
    deadline = time.monotonic() + CLOSE_TIMEOUT
    pools = [pool for pool in _pools if pool.is_own]
    for pool in pools:
        pool.stop()
    for pool in pools:
        pool.close(max(0.0, deadline - time.monotonic()))
