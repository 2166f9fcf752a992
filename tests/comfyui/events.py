"""What ComfyUI tells its page while a prompt runs: a small WebSocket client (RFC 6455)."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

WAIT_TIMEOUT = 60.0  # seconds; a bound for what hangs
_POLL_INTERVAL = 0.02
_TEXT_FRAME, _BINARY_FRAME, _CLOSE_FRAME = 1, 2, 8
_PROGRESS_TEXT = 3  # ComfyUI's kind of a binary event


class PageEvents:
    """Collects the events for one client id, as the page of that id would. A context manager."""

    def __init__(self, url: str, client_id: str) -> None:
        place = urlsplit(url)
        assert place.hostname is not None and place.port is not None
        self._socket = socket.create_connection((place.hostname, place.port), timeout=WAIT_TIMEOUT)
        self._file = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET /ws?clientId={client_id} HTTP/1.1",
            f"Host: {place.netloc}",
            *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
            *(f"Sec-WebSocket-Key: {key}", "", ""),
        ]
        self._socket.sendall("\r\n".join(lines).encode())
        assert b" 101 " in self._file.readline()
        while self._file.readline().strip():
            pass
        self.messages: list[tuple[str, Any]] = []
        """Type and data of each JSON event."""
        self.texts: list[tuple[str, str]] = []
        """Node id and text of each text that was shown on a node."""
        self._thread = threading.Thread(target=self._read, name="page-events", daemon=True)

    def __enter__(self) -> PageEvents:
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._file.close()
        self._socket.close()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"texts: {self.texts}; events: {self.messages[-5:]}")
            time.sleep(_POLL_INTERVAL)

    def _read(self) -> None:
        while (frame := self._next_frame()) is not None:
            kind, payload = frame
            if kind == _TEXT_FRAME:
                event = json.loads(payload)
                self.messages.append((event["type"], event["data"]))
            elif kind == _BINARY_FRAME and struct.unpack(">I", payload[:4])[0] == _PROGRESS_TEXT:
                (length,) = struct.unpack(">I", payload[4:8])
                node_id, text = payload[8 : 8 + length], payload[8 + length :]
                self.texts.append((node_id.decode(), text.decode()))

    def _next_frame(self) -> tuple[int, bytes] | None:
        """None: the connection has ended."""
        try:
            head = self._file.read(2)
            if len(head) < 2 or head[0] & 15 == _CLOSE_FRAME:
                return None
            length = head[1] & 127
            if length > 125:
                size, code = (2, ">H") if length == 126 else (8, ">Q")
                (length,) = struct.unpack(code, self._file.read(size))
            return head[0] & 15, self._file.read(length)
        except (OSError, ValueError, struct.error):
            return None
