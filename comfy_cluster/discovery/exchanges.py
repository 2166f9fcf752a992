"""HTTP exchanges that end: each has a time for all of it, and its answer a largest size.

requests gives neither: its timeout is that of one read, so a server that sends a byte now and then
holds its caller for ever, and a body is read however large it is. Used by `registry.py`.

How it works: each connection keeps a second descriptor of its socket. When the time is over, or
somebody interrupts, the socket is shut down by that one, wherever the exchange is: in the TLS
handshake, the headers or the body. While it connects it looks up now and then whether that is so.
What cannot be interrupted is the resolver of the system while it looks a name up; it gives up by
itself. Of SOCKS proxies nothing here is bounded but each read and each connect: their connections
are of a kind of their own.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.connection import allowed_gai_family
from urllib3.util.wait import wait_for_write

CONNECT_TIMEOUT = 3.05  # seconds for one address; a little more than TCP's first retransmission
_LOOK_INTERVAL = 0.05  # seconds between two looks at whether the exchange is over
_CONNECTING = (errno.EINPROGRESS, errno.EWOULDBLOCK)
LARGEST_ANSWER = 8 << 20  # bytes; 4,096 instances with all their candidates have 4.5 MB
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
        try:
            timer.start()
        except RuntimeError as error:
            if threading.main_thread().is_alive():  # else the interpreter ends, and this with it
                raise requests.ConnectionError(error) from error
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

    def connect(
        self,
        hostname: str,
        port: int,
        *,
        timeout: float,
        options: Iterable[tuple[int, int, int | bytes]],
    ) -> socket.socket:
        """`timeout`: for each address of the name. OSError, UnicodeError: none is reached."""
        families = allowed_gai_family()
        failure = OSError("no address")
        found = socket.getaddrinfo(hostname.strip("[]"), port, families, socket.SOCK_STREAM)
        for family, kind, protocol, _, place in found:
            if self.is_over(self._number):
                break
            with contextlib.ExitStack() as opened:
                try:
                    sock = opened.enter_context(socket.socket(family, kind, protocol))
                    for option in options:
                        sock.setsockopt(*option)
                    self._reach(sock, place, timeout)
                    sock.settimeout(timeout)
                except OSError as error:
                    failure = error
                else:
                    opened.pop_all()
                    return sock
        raise failure

    def _reach(self, sock: socket.socket, place: Any, timeout: float) -> None:
        sock.setblocking(False)
        code = sock.connect_ex(place)
        until = time.monotonic() + timeout
        while code in _CONNECTING:
            left = until - time.monotonic()
            if left <= 0 or self.is_over(self._number):
                raise TimeoutError("timed out")
            if wait_for_write(sock, min(left, _LOOK_INTERVAL)):
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

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
            """As urllib3's own, which gives each address of a name its full time."""
            timeout = cast(float, self.timeout)  # requests gives one
            try:
                sock = sockets.connect(
                    self._dns_host, self.port, timeout=timeout, options=self.socket_options or ()
                )
            except TimeoutError as error:
                raise ConnectTimeoutError(self, f"no connection in {timeout:g} s") from error
            except (OSError, UnicodeError) as error:
                raise NewConnectionError(self, f"no connection: {error}") from error
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
