"""A few threads that read payloads to the last byte: digests of outgoing ones, checks and copies of
incoming ones.

A digest of 400 MB takes 50 ms, so neither the caller nor the control thread makes it. xxhash works
without the GIL. Used by `transport.py`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from comfy_cluster.codec.payload import EncodedPayload, digest_of
from comfy_cluster.transport.memory import allocate

THREAD_COUNT = 2  # one for each direction: more only compete with the engine for memory bandwidth
# Bytes up to which the digest is made at once: it takes 10 us, handing it over takes longer.
SMALL_PAYLOAD = 64 << 10
STOP_TIMEOUT = 0.3  # seconds; a digest under way is not interrupted, its thread is a daemon

Job = Callable[[], object]


class DigestPool:
    """Threads start with the first large payload."""

    def __init__(self, *, on_failure: Callable[[BaseException], object]) -> None:
        """`on_failure(error)` is called on a thread that dies by itself."""
        self._on_failure = on_failure
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the fields below
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self._under_way: dict[int, list[Callable[[bytes], object]]] = {}

    def digest(self, payload: EncodedPayload, on_digest: Callable[[bytes], object]) -> None:
        """Calls `on_digest(digest)`, at once or on a thread of the pool; never after `close`.

        A payload that goes to several peers at the same time is read once.
        """
        if payload.size <= SMALL_PAYLOAD:
            on_digest(payload.digest())
            return
        with self._lock:
            waiting = self._under_way.setdefault(id(payload), [])
            waiting.append(on_digest)
            is_first = len(waiting) == 1
        if is_first:
            self._submit(lambda: self._make_digest(payload))

    def _make_digest(self, payload: EncodedPayload) -> None:
        digest = payload.digest()
        with self._lock:
            waiting = self._under_way.pop(id(payload))
        for on_digest in waiting:
            on_digest(digest)

    def verify(
        self, data: memoryview, digest: bytes, on_verified: Callable[[bool], object]
    ) -> None:
        """Calls `on_verified(is_equal)`, now or on a thread of the pool; never after `close`."""
        if len(data) <= SMALL_PAYLOAD:
            on_verified(digest_of(data) == digest)
        else:
            self._submit(lambda: on_verified(digest_of(data) == digest))

    def copy(self, data: memoryview, on_copied: Callable[[memoryview | None], object]) -> None:
        """Calls `on_copied(copy)` on a thread of the pool, or None if there is no memory for it;
        never after `close`."""
        self._submit(lambda: on_copied(_copy_of(data)))

    def close(self) -> bool:
        """Ends the threads; False if one did not end in time. Calling it twice is fine."""
        with self._lock:
            self._is_closed = True
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _submit(self, job: Job) -> None:
        with self._lock:
            if self._is_closed:
                return
            while len(self._threads) < THREAD_COUNT:
                name = f"comfy-cluster-digest-{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
        self._jobs.put(job)

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None and not self._is_closed:
                job()
                del job  # it holds a payload, and the next one may be long in coming
        except BaseException as error:  # the top of the thread: it ends, and everything fails
            self._on_failure(error)


def _copy_of(data: memoryview) -> memoryview | None:
    try:
        copied = allocate(len(data))[: len(data)]
    except MemoryError:
        return None
    copied[:] = data
    return copied
