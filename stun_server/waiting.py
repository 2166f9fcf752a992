"""Requests that wait until a cluster changes ("long-poll").

One thread of each process asks the store for the revisions of all clusters that somebody waits for,
ten times a second. That is cheaper than each asking for itself, works the same for changes of other
processes and machines, and needs no connection that could break unnoticed.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from stun_server.store import Store, StoreUnavailable

logger = logging.getLogger("stun_server")

LOOK_INTERVAL = 0.1  # seconds
LARGEST_SHARE = 0.75  # of those who may wait, for one cluster
CLOSE_TIMEOUT = 1.0  # seconds


@dataclass(slots=True)
class _Watched:
    revision: int
    changed: threading.Condition
    waiting: int = 0


class ChangeWatch:
    """Thread-safe. The thread starts with the first who waits, so after any fork."""

    def __init__(self, store: Store, *, capacity: int) -> None:
        self._store = store
        self._capacity = capacity
        self._watched: dict[str, _Watched] = {}
        self._waiting = 0
        self._lock = threading.Lock()  # guards all of these
        self._somebody = threading.Condition(self._lock)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return self._waiting

    @property
    def is_closing(self) -> bool:
        """Nobody waits any more: the process is about to end."""
        return self._closing.is_set()

    def wait(self, cluster_id: str, revision: int, timeout: float) -> bool:
        """Returns when the cluster's revision is another one, or after `timeout` seconds; sooner at
        times, so who asks looks again.

        False: nobody can wait now, since too many do already, or since the process ends.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            others = self._watched.get(cluster_id)
            is_full = self._waiting >= self._capacity or (
                others is not None and others.waiting >= self._capacity * LARGEST_SHARE
            )
            if self._closing.is_set() or is_full:
                return False
            self._start()
            watched = self._watched.setdefault(
                cluster_id, _Watched(revision, threading.Condition(self._lock))
            )
            if watched.revision < revision:  # whoever asked read it a moment ago
                watched.revision = revision
                watched.changed.notify_all()
            watched.waiting += 1
            self._waiting += 1
            self._somebody.notify()
            try:
                while watched.revision == revision and not self._closing.is_set():
                    left = deadline - time.monotonic()
                    if left <= 0 or not watched.changed.wait(left):
                        break
            finally:
                self._waiting -= 1
                watched.waiting -= 1
                if not watched.waiting:
                    del self._watched[cluster_id]
            return not self._closing.is_set()

    def close(self) -> None:
        """Wakes all who wait, and ends the thread. Safe in a signal's callback: takes no lock."""
        self._closing.set()

    def join(self) -> None:
        """Waits until the thread has ended, for a bounded time."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            threading.Thread(target=self._end, name="stun-server-watch-end", daemon=True).start()
            thread = threading.Thread(target=self._run, name="stun-server-watch", daemon=True)
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while not self._closing.wait(LOOK_INTERVAL):
            with self._lock:
                if not self._watched:
                    self._somebody.wait(LOOK_INTERVAL)
                watched = list(self._watched)
            if not watched:
                continue
            try:
                revisions = self._store.revisions(watched)
            except StoreUnavailable as error:
                logger.warning("! nobody can be told of changes: %s", error)
                continue
            with self._lock:
                for cluster_id, revision in revisions.items():
                    each = self._watched.get(cluster_id)
                    # Lower where the cluster or the store is gone.
                    if each is not None and each.revision != revision:
                        each.revision = revision
                        each.changed.notify_all()

    def _end(self) -> None:
        """Not on the thread that asks the store, which may hang longer than a stop may take."""
        self._closing.wait()
        with self._lock:
            for each in self._watched.values():
                each.changed.notify_all()
