"""A rendezvous server after the contract of spec.md section 9, in this process; tests spoil it.

It has no other routes, as the servers of others.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY_HEADER = "X-Cluster-Key"
LONGEST_STALL = 20.0  # seconds; for a test that fails, not to hang


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that have gone, which is theirs to do."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Rendezvous:
    """The registrations and what was asked; a context manager that serves them over HTTP."""

    def __init__(self, *, tells_revisions: bool = False, port: int = 0) -> None:
        self.port = port
        self.instances: dict[tuple[str, str], dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.asked: list[str] = []
        """Method and path of each request."""
        self.failing: tuple[int, dict[str, Any]] | None = None
        """Status and body of every answer, in place of the right one."""
        self.raw_answer: bytes | None = None
        self.content_type = "application/json"
        self.hides_unknown = False
        """Whether it answers for an unknown cluster as for a wrong key."""
        self.headers: dict[str, str] = {}
        self.stalling: str | None = None
        """How it never comes to an end: it says nothing (`silence`), drips `headers` or a `body`,
        or sends an `endless` one as fast as it can."""
        self.connection_count = 0
        self.changed = threading.Condition()
        self._revision = 0
        self._tells_revisions = tells_revisions
        self._has_ended = threading.Event()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Rendezvous:
        rendezvous = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                rendezvous.connection_count += 1
                super().setup()

            def answer(self) -> None:
                rendezvous.answer(self)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """The tests have no use for it."""

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._has_ended.set()
        self._server.shutdown()
        self._server.server_close()

    def forget_all(self) -> None:
        """As after a restart with an empty store."""
        with self.changed:
            self.instances.clear()
            self.keys.clear()
            self._note_change()

    def put(self, index: int, *, cluster_id: str = "c", address: str = "10.0.0.9") -> None:
        """An instance registers."""
        with self.changed:
            self.instances[cluster_id, str(index)] = {
                "instance_id": str(index),
                "address": address,
                "port": 9998,
                "role": "FOLLOWER",
                "last_ping": "2026-11-25T00:00:00Z",
            }
            self._note_change()

    def remove(self, index: int, *, cluster_id: str = "c") -> None:
        """An instance leaves, or is silent for too long."""
        with self.changed:
            del self.instances[cluster_id, str(index)]
            self._note_change()

    def wait_for(self, text: str, *, count: int = 1, timeout: float = 20.0) -> None:
        """Until so many requests began so."""
        with self.changed:
            assert self.changed.wait_for(
                lambda: sum(each.startswith(text) for each in self.asked) >= count, timeout
            ), self.asked

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        size = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(size)) if size else {}
        if request.path.startswith("/v1/") and self.stalling is None and self.failing is None:
            self._refuse_route(request)
            return
        with self.changed:
            self.asked.append(f"{request.command} {request.path}")
            self.changed.notify_all()
        if self.stalling is not None:
            self._stall(request)
            return
        status, answer = self.failing or self._right_answer(request, body)
        data = json.dumps(answer).encode() if self.raw_answer is None else self.raw_answer
        if "Date" in self.headers:
            request.send_response_only(status)
        else:
            request.send_response(status)
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.send_header("Content-Type", self.content_type)
        if self._tells_revisions:
            request.send_header("ETag", f'"{self._revision}"')
        request.send_header("Content-Length", str(0 if status == 304 else len(data)))
        request.end_headers()
        if status != 304:
            request.wfile.write(data)

    def _refuse_route(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(404)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _stall(self, request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        with contextlib.suppress(OSError):  # who asked has gone
            if self.stalling != "silence":
                request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            if self.stalling in ("body", "endless"):
                request.wfile.write(b"no\r\n\r\n[")
            size, pause = (1 << 16, 0.0) if self.stalling == "endless" else (1, 0.02)
            until = time.monotonic() + LONGEST_STALL
            while not self._has_ended.wait(pause) and time.monotonic() < until:
                if self.stalling != "silence":
                    request.wfile.write(b" " * size)

    def _right_answer(
        self, request: BaseHTTPRequestHandler, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        path, _, query = request.path.partition("?")
        _, route, *names = path.split("/")
        cluster_id = body.get("cluster_id") or names[0]
        with self.changed:
            key = request.headers[KEY_HEADER]
            is_unknown = cluster_id not in self.keys and route != "register-instance"
            if self.hides_unknown and is_unknown:
                return 401, {"error": "unknown cluster or wrong key"}
            if self.keys.setdefault(cluster_id, key) != key:
                return 401, {"error": "unknown cluster or wrong key"}
            if route == "register-instance":
                self.put_body(body)
                return 200, {"status": "registered", **self._listed(cluster_id), **_id(body)}
            if route == "instances":
                return self._list(request, cluster_id, query)
            known = (cluster_id, names[1]) in self.instances
            if request.command == "DELETE":
                self.instances.pop((cluster_id, names[1]), None)
                self._note_change()
                return 200, {"status": "removed", "instance_id": names[1]}
            if not known:
                return 404, {"error": "not registered, or expired"}
            return 200, {"status": "updated", "instance_id": names[1]}

    def put_body(self, body: dict[str, Any]) -> None:
        place = (body["cluster_id"], body["instance_id"])
        entry = {name: body[name] for name in ("instance_id", "address", "port", "role")}
        if self.instances.get(place) != entry:
            self.instances[place] = entry
            self._note_change()

    def _list(
        self, request: BaseHTTPRequestHandler, cluster_id: str, query: str
    ) -> tuple[int, dict[str, Any]]:
        asked = request.headers.get("If-None-Match")
        if self._tells_revisions and asked is not None:
            wait = float(query.partition("wait=")[2] or 0)
            self.changed.wait_for(lambda: asked != f'"{self._revision}"', wait)
            if asked == f'"{self._revision}"':
                return 304, {}
        return 200, self._listed(cluster_id)

    def _listed(self, cluster_id: str) -> dict[str, Any]:
        found = [each for (cluster, _), each in self.instances.items() if cluster == cluster_id]
        return {"cluster_id": cluster_id, "instances": found}

    def _note_change(self) -> None:
        self._revision += 1
        self.changed.notify_all()


def _id(body: dict[str, Any]) -> dict[str, Any]:
    return {"instance_id": body["instance_id"]}


@contextmanager
def silent_server() -> Iterator[str]:
    """The URL of a port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def dripping_tls_server() -> Iterator[str]:
    """The URL of a server whose first TLS record never ends."""
    has_ended = threading.Event()

    def drip(server: socket.socket) -> None:
        with contextlib.suppress(OSError), server.accept()[0] as connection:
            connection.sendall(b"\x16\x03\x03\x40\x00")  # handshake, TLS 1.2, 16 KiB
            until = time.monotonic() + LONGEST_STALL
            while not has_ended.wait(0.02) and time.monotonic() < until:
                connection.sendall(b"\0")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}"
        has_ended.set()
        thread.join()
