"""HTTP exchanges that end: each has a time for all of it, and its answer a largest size.

requests gives neither: its timeout is that of one read, so a server that sends a byte now and then
holds its caller for ever, and a body is read however large it is. Used by `registry.py`.

How it works: each connection keeps a second descriptor of its socket. When the time is over, or
somebody interrupts, the socket is shut down by that one, wherever the exchange is: in the TLS
handshake, the headers or the body. What cannot be interrupted is the resolver of the system while
it looks a name up; it gives up by itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

CONNECT_TIMEOUT = 3.05  # seconds; a little more than TCP's first retransmission
LARGEST_ANSWER = 4 << 20  # bytes; the list of 4,096 instances has some 600 KB
_PIECE = 1 << 16  # bytes read at a time


class AnswerTooLarge(requests.RequestException):
    """The server sends more than `LARGEST_ANSWER`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said, all of it."""

    url: str
    status: int
    reason: str
    headers: Mapping[str, str]
    """By name in any case."""
    body: bytes

    def json(self) -> Any:
        """ValueError: it is none."""
        try:
            return json.loads(self.body)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


class Exchanges:
    """A `requests.Session` of one thread; only `interrupt` is for others."""

    def __init__(self) -> None:
        self.session = _Session()
        self._sockets = _Sockets()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _Adapter(self._sockets))
        weakref.finalize(self, self._sockets.close)

    def ask(self, method: str, url: str, *, timeout: float, **options: Any) -> Answer:
        """Raises RequestException; Timeout: after `timeout` seconds, or an interruption."""
        with self._sockets.exchange(timeout) as number:
            try:
                answer = self._ask(method, url, timeout, options)
            except (requests.RequestException, OSError) as error:
                if self._sockets.is_over(number):
                    raise requests.Timeout(f"{url}: {timeout:g} s are over") from error
                raise
            if self._sockets.is_over(number):  # such a body may look complete
                raise requests.Timeout(f"{url}: {timeout:g} s are over")
            return answer

    def _ask(self, method: str, url: str, timeout: float, options: dict[str, Any]) -> Answer:
        response = self.session.request(
            method,
            url,
            timeout=(min(CONNECT_TIMEOUT, timeout), timeout),
            stream=True,
            allow_redirects=False,
            **options,
        )
        with contextlib.closing(response):
            body = _body_of(response)
        return Answer(url, response.status_code, response.reason or "", response.headers, body)

    def interrupt(self) -> None:
        """Ends the exchange that is under way, and each that would follow."""
        self._sockets.interrupt()

    def close(self) -> None:
        """Closes the connections."""
        self.session.close()
        self._sockets.close()


def _body_of(response: requests.Response) -> bytes:
    """Not decompressed: nobody asked for that, and a bomb is none while it is packed."""
    body = bytearray()
    try:
        while piece := response.raw.read(_PIECE, decode_content=False):
            body += piece
            if len(body) > LARGEST_ANSWER:
                raise AnswerTooLarge(f"more than {LARGEST_ANSWER:,} bytes")
    except (urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
        raise requests.ConnectionError(error) from error
    return bytes(body)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None is followed; and requests reads and unpacks the whole body before it does not."""
        return None


class _Sockets:
    """Second descriptors of the sockets of one session's connections. Thread-safe."""

    def __init__(self) -> None:
        self._open: set[socket.socket] = set()
        self._retired: set[socket.socket] = set()  # of closed connections; may be read from
        self._number = 0  # of the present exchange, or of the last one
        self._over = 0  # the exchange whose time is over
        self._is_interrupted = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def exchange(self, timeout: float) -> Iterator[int]:
        with self._lock:
            self._number += 1
            number = self._number
            if self._is_interrupted:
                raise requests.Timeout("interrupted")
        timer = threading.Timer(timeout, self._end, (number,))
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and this with it
            timer.start()
        try:
            yield number
        finally:
            timer.cancel()
            self._close(self._retired)

    def is_over(self, number: int) -> bool:
        return self._is_interrupted or self._over == number

    def interrupt(self) -> None:
        self._is_interrupted = True
        self._end(self._number)

    def _end(self, number: int) -> None:
        with self._lock:
            if number != self._number:
                return
            self._over = number
            for each in self._open | self._retired:
                _shut_down(each)

    def add(self, second: socket.socket) -> None:
        with self._lock:
            self._open.add(second)
            if self.is_over(self._number):
                _shut_down(second)

    def retire(self, second: socket.socket) -> None:
        """Its connection is closed, which does not keep an answer from being read to its end."""
        with self._lock:
            self._open.discard(second)
            self._retired.add(second)

    def close(self) -> None:
        self._close(self._open)
        self._close(self._retired)

    def _close(self, which: set[socket.socket]) -> None:
        with self._lock:
            for each in which:
                each.close()
            which.clear()


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is not connected any more
        sock.shutdown(socket.SHUT_RDWR)


class _Adapter(HTTPAdapter):
    """Makes connections whose sockets are known."""

    def __init__(self, sockets: _Sockets) -> None:
        self._pool_classes = _pool_classes(sockets)
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):  # whose connections are of another kind
            manager.pool_classes_by_scheme = self._pool_classes
        return manager


def _pool_classes(sockets: _Sockets) -> dict[str, type[HTTPConnectionPool]]:
    class Watched(HTTPConnection):
        _second: socket.socket | None = None

        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            self._second = sock.dup()
            sockets.add(self._second)
            return sock

        def close(self) -> None:
            second, self._second = self._second, None
            if second is not None:
                sockets.retire(second)
            super().close()

    class WatchedTls(Watched, HTTPSConnection):
        pass

    class Pool(HTTPConnectionPool):
        ConnectionCls = Watched

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = WatchedTls

    return {"http": Pool, "https": TlsPool}
