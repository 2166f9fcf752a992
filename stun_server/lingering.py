"""Connections' ends: what a client still sends is read for a while after the answer. Closed while
more comes, a connection is reset, and a reset may take the answer back (RFC 9112, section 9.6)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading

LINGER = 2.0
"""Seconds; as long as gunicorn itself would wait, there on the thread that accepts all others."""
LARGEST_DRAIN = 1 << 20
"""Bytes; the largest body that deploy/Caddyfile lets through."""
MOST_LINGERING = 256
"""Connections at one time; of more, what has not come yet is waited for by nobody."""
_PIECE = 65_536


class LingeringCloser:
    """Closes sockets behind their last answer, on a thread of its own: waiting holds nobody up."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lingering = 0  # event loop's thread only
        self._thread = threading.Thread(target=self._run, name="lingering", daemon=True)
        self._thread.start()

    def close_socket(self, sock: socket.socket) -> None:
        """Takes `sock` over. Returns at once; any thread."""
        try:
            sock.shutdown(socket.SHUT_WR)
            sock.setblocking(False)
            is_over = isinstance(sock, ssl.SSLSocket) or not sock.recv(_PIECE)
        except BlockingIOError:
            is_over = False
        except OSError:
            is_over = True
        if is_over:
            sock.close()
            return
        try:
            self._loop.call_soon_threadsafe(self._linger, sock)
        except RuntimeError:  # closed
            sock.close()

    def close(self) -> None:
        """Ends the thread; whatever still lingers is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for each in tasks:
                each.cancel()
            if tasks:
                self._loop.run_until_complete(asyncio.wait(tasks))

    def _linger(self, sock: socket.socket) -> None:
        if self._lingering >= MOST_LINGERING:
            sock.close()
            return
        self._lingering += 1
        task = self._loop.create_task(self._drain(sock))
        task.add_done_callback(self._drained)

    async def _drain(self, sock: socket.socket) -> None:
        with contextlib.closing(sock), contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._read(sock), LINGER)

    async def _read(self, sock: socket.socket) -> None:
        drained = 0
        while drained < LARGEST_DRAIN:
            piece = await self._loop.sock_recv(sock, _PIECE)
            if not piece:
                return
            drained += len(piece)

    def _drained(self, task: asyncio.Task[None]) -> None:
        self._lingering -= 1
