"""Digests of outgoing payloads, checks and copies of incoming ones, on the worker threads.

A digest of 400 MB takes 50 ms, so neither the caller nor the control thread makes it. xxhash works
without the GIL. Used by `transport.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from comfy_cluster.codec.payload import EncodedPayload, digest_of
from comfy_cluster.transport.memory import allocate
from comfy_cluster.transport.workers import WorkerPool

# Bytes up to which the digest is made at once: it takes 10 us, handing it over takes longer.
SMALL_PAYLOAD = 64 << 10


class DigestPool:
    """What it calls back comes at once or on a worker thread; never after the workers' end."""

    def __init__(self, workers: WorkerPool) -> None:
        self._workers = workers
        self._lock = threading.Lock()  # guards the field below
        self._under_way: dict[int, list[Callable[[bytes], object]]] = {}

    def digest(self, payload: EncodedPayload, on_digest: Callable[[bytes], object]) -> None:
        """Calls `on_digest(digest)`.

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
            self._workers.run(lambda: self._make_digest(payload))

    def _make_digest(self, payload: EncodedPayload) -> None:
        digest = payload.digest()
        with self._lock:
            waiting = self._under_way.pop(id(payload))
        for on_digest in waiting:
            on_digest(digest)

    def verify(
        self, data: memoryview, digest: bytes, on_verified: Callable[[bool], object]
    ) -> None:
        """Calls `on_verified(is_equal)`."""
        if len(data) <= SMALL_PAYLOAD:
            on_verified(digest_of(data) == digest)
        else:
            self._workers.run(lambda: on_verified(digest_of(data) == digest))

    def copy(self, data: memoryview, on_copied: Callable[[memoryview | None], object]) -> None:
        """Calls `on_copied(copy)` on a worker thread, or None if there is no memory for it."""
        self._workers.run(lambda: on_copied(_copy_of(data)))


def _copy_of(data: memoryview) -> memoryview | None:
    try:
        copied = allocate(len(data))[: len(data)]
    except MemoryError:
        return None
    copied[:] = data
    return copied
