"""A few threads for work on whole payloads that lets go of the GIL: digests, copies, unmapping.

Used inside `transport/`. A job runs once, in the order of their coming, or never after `close`.
Where the system gives this process no thread, whoever brings a job does it himself.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable

# One for each direction at least; more than four only compete for memory bandwidth.
THREAD_COUNT = min(4, max(2, os.cpu_count() or 2))
STOP_TIMEOUT = 0.3  # seconds; a job under way is not interrupted, its thread is a daemon

Job = Callable[[], object]


class WorkerPool:
    """Threads start with the first job."""

    def __init__(self, *, on_failure: Callable[[BaseException], object]) -> None:
        """`on_failure(error)` is called on a thread that dies by itself."""
        self._on_failure = on_failure
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the fields below
        self._threads: list[threading.Thread] = []
        self._running_count = 0
        self._at_end: list[Job] = []
        self._is_closed = False

    def run(self, job: Job) -> None:
        """From any thread."""
        with self._lock:
            if self._is_closed:
                return
            while len(self._threads) < THREAD_COUNT and self._start_thread():
                pass
            has_threads = bool(self._threads)
        if has_threads:
            self._jobs.put(job)
        else:
            job()

    def _start_thread(self) -> bool:
        """Under the lock. Whether there is one more now."""
        name = f"comfy-cluster-worker-{len(self._threads)}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._threads.append(thread)
        self._running_count += 1
        return True

    def close(self, at_end: Job = lambda: None) -> bool:
        """Ends the threads; False if one did not end in time. Calling it twice is fine.

        `at_end` runs when none runs any more: before this returns, or on the last one.
        """
        with self._lock:
            self._is_closed = True
            self._at_end.append(at_end)
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._run_at_end()
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None and not self._is_closed:
                job()
                del job  # it holds a payload, and the next one may be long in coming
        except BaseException as error:  # the top of the thread: it ends, and everything fails
            self._on_failure(error)
        with self._lock:
            self._running_count -= 1
        self._run_at_end()

    def _run_at_end(self) -> None:
        with self._lock:
            if self._running_count or not self._is_closed:
                return
            jobs, self._at_end = self._at_end, []
        for each in jobs:
            each()
