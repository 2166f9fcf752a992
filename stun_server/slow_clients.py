"""gunicorn's worker of threads, for clients that are slow or send nothing: they hold no thread.

How it works. A request comes to a thread when its whole head is there, and leaves it when it is
answered, however slowly the answer is taken: both is waited for on the thread that accepts
connections, by the poller that gunicorn has there for kept ones. Whoever waits longer than PATIENCE
is closed. When connections run out, whoever has been silent for longest is closed, so that new ones
are always accepted. What still holds a thread is a body on its way (`bodies.py`), a request that
waits for a change, and work.

It stands on what is inside of gunicorn, so only versions that were tried get it; the others' own
worker does all else as well.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gunicorn
from gunicorn.http.errors import LimitRequestHeaders
from gunicorn.workers import gthread

from stun_server.client_socket import LARGEST_HEAD, ClientSocket, Head

PATIENCE = 10.0
"""Seconds for a request's head, and for what of an answer the system has no room for."""
STOP_PATIENCE = 0.2
"""Seconds; the same when the worker stops."""
MOST_UNSENT = 64 << 20
"""Bytes of answers that wait for their clients, in one worker."""
_OTHER_FILES = 1024  # that a worker may open besides its connections; 256 linger

_TRIED = range(24, 28)  # major versions of gunicorn
IS_SUPPORTED = gunicorn.version_info[0] in _TRIED


class Worker(gthread.ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """All but `handle`, which gunicorn calls in its threads, is for the main thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._slow: dict[Any, float] = {}  # connections, by since when; the oldest first
        self._has_no_room = False
        self._has_unsent = False

    def init_process(self) -> None:
        """Lets the process open as many files as it needs, where the machine allows it."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = self.worker_connections + _OTHER_FILES
        if hard != resource.RLIM_INFINITY:
            needed = min(needed, hard)
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        super().init_process()

    def accept(self, listener: socket.socket) -> None:
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._has_no_room = True

    def enqueue_req(self, conn: Any) -> None:
        """A connection is new, or something has come on a kept one."""
        if conn.cfg.is_ssl:
            super().enqueue_req(conn)
            return
        if not isinstance(conn.sock, ClientSocket):
            conn.sock = ClientSocket(conn.sock)
        conn.sock.setblocking(False)
        head = conn.sock.look_for_head(_unparsed(conn))
        if head is Head.SOME:
            self._wait(conn, selectors.EVENT_READ, self._on_more)
        else:
            self._serve(conn, head)

    def finish_request(self, conn: Any, done: Any) -> None:
        """A thread has answered, or failed."""
        if not getattr(conn.sock, "unsent", 0):
            self._finish(conn, done)
            return
        self._wait(conn, selectors.EVENT_WRITE, partial(self._on_room, done=done))
        self._has_unsent = True

    def murder_keepalived(self, *args: Any, **options: Any) -> None:
        """Called after each look at what has happened: closes whoever is too slow.

        Nowhere else: what has happened may be about who is closed.
        """
        super().murder_keepalived(*args, **options)
        limit = time.monotonic() - (PATIENCE if self.alive else STOP_PATIENCE)
        while self._slow and next(iter(self._slow.values())) <= limit:
            self._drop(next(iter(self._slow)))
        if self._has_unsent:
            self._has_unsent = False
            self._limit_unsent()
        if self._has_no_room or self.nr_conns >= self.worker_connections:
            self._has_no_room = False
            self._make_room()

    def _serve(self, conn: Any, head: Head) -> None:
        if head is Head.TOO_MUCH:
            error = LimitRequestHeaders(f"more than {LARGEST_HEAD} bytes")
            self.handle_error(None, conn.sock, conn.client, error)
            self._close(conn)
            return
        conn.sock.setblocking(True)
        conn.data_ready = True  # else gunicorn waits for what was read ahead
        super().enqueue_req(conn)

    def _finish(self, conn: Any, done: Any) -> None:
        super().finish_request(conn, done)
        kept = self.keepalived_conns
        if kept and kept[-1] is conn and _unparsed(conn):  # gunicorn 27 looks for itself
            self.on_client_socket_readable(conn, conn.sock)

    def _wait(self, conn: Any, event: int, go_on: Callable[[Any, Any], None]) -> None:
        conn.sock.setblocking(False)
        self.poller.register(conn.sock, event, partial(go_on, conn))
        self._slow[conn] = time.monotonic()

    def _on_more(self, conn: Any, _: Any) -> None:
        head = conn.sock.look_for_head(_unparsed(conn))
        if head is not Head.SOME:
            self._release(conn)
            self._serve(conn, head)

    def _on_room(self, conn: Any, _: Any, *, done: Any) -> None:
        try:
            if not conn.sock.send_rest():
                return
        except OSError:
            self._drop(conn)
            return
        self._release(conn)
        self._finish(conn, done)

    def _release(self, conn: Any) -> None:
        del self._slow[conn]
        self.poller.unregister(conn.sock)

    def _drop(self, conn: Any) -> None:
        self._release(conn)
        self._close(conn)

    def _close(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()

    def _limit_unsent(self) -> None:
        """Closes those whose answers wait longest, while there is too much of answers."""
        waiting = [each for each in self._slow if each.sock.unsent]
        unsent = sum(each.sock.unsent for each in waiting)
        for each in waiting:
            if unsent <= MOST_UNSENT:
                return
            unsent -= each.sock.unsent
            self._drop(each)

    def _make_room(self) -> None:
        """Closes the connection that has waited longest, be it kept for a next request or slow."""
        kept = self.keepalived_conns
        slow_since = next(iter(self._slow.values()), None)
        if kept and (slow_since is None or kept[0].timeout - self.cfg.keepalive < slow_since):
            kept[0].timeout = 0.0
            super().murder_keepalived()
        elif slow_since is not None:
            self._drop(next(iter(self._slow)))


def _unparsed(conn: Any) -> bytes:
    """What gunicorn has read beyond the request before."""
    unread = b""
    with contextlib.suppress(AttributeError):  # no parser yet
        unread = conn.parser.unreader.buf.getvalue()
    return unread
