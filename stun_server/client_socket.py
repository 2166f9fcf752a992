"""A client's socket as gunicorn sees it, at which a slow client holds no thread for long."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
import socket
import time
from typing import Any

LARGEST_HEAD = 32 * 1024
"""Bytes of a request's head that are waited for; one that goes on is refused."""
READ_TIMEOUT = 1.0
"""Seconds for what a thread reads without saying how long: all of it is there, as a rule."""
_HEAD_END = re.compile(rb"\n\r?\n")  # the one without CR is none, which gunicorn says
_SHORTEST_TIMEOUT = 0.001  # seconds; 0 means another mode


class Head(enum.Enum):
    """How much of a request's head is there."""

    SOME = enum.auto()
    ALL = enum.auto()
    """Or no more will come, or what is there is no head."""
    TOO_MUCH = enum.auto()
    """And whoever reads on may wait for the rest."""


class ClientSocket(socket.socket):
    """Differs from a socket of the library in three things:

    A timeout is for all that is read until the next one is set: one byte now and then does not
    prolong it. It is never None.
    `sendall` waits for nobody. What there is no room for is kept, and goes by `send_rest`.
    `look_for_head` reads ahead; what it has read is the first that is received.

    One thread at a time.
    """

    __slots__ = ("_ahead", "_read_by", "_unsent")

    def __init__(self, sock: socket.socket) -> None:
        """Takes the connection of `sock`, which is detached from it."""
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self._ahead = bytearray()
        self._unsent = bytearray()
        self.setblocking(False)

    def setblocking(self, flag: bool) -> None:
        """True: for READ_TIMEOUT."""
        self.settimeout(READ_TIMEOUT if flag else 0.0)

    def settimeout(self, value: float | None) -> None:
        """Seconds from now on. None: READ_TIMEOUT."""
        seconds = READ_TIMEOUT if value is None else value
        self._read_by = time.monotonic() + seconds
        super().settimeout(seconds)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """What was read ahead in one piece, however large; else what comes. TimeoutError."""
        if self._ahead:
            ahead, self._ahead = bytes(self._ahead), bytearray()
            return ahead
        if not self.gettimeout():
            return super().recv(bufsize, flags)
        super().settimeout(max(_SHORTEST_TIMEOUT, self._read_by - time.monotonic()))
        try:
            return super().recv(bufsize, flags)
        except TimeoutError:  # without such a number, gunicorn logs a fault of its own
            raise TimeoutError(errno.ECONNRESET, "it did not come in time") from None

    def look_for_head(self, before: bytes = b"") -> Head:
        """Reads what is there of a request's head, which begins with `before`.

        For a socket that is not blocking.
        """
        try:
            piece = super().recv(LARGEST_HEAD)
        except BlockingIOError:
            piece = None
        except OSError:
            return Head.ALL
        if piece == b"":
            return Head.ALL
        known = max(0, len(self._ahead) - 3)  # no end is in it; its last bytes may begin one
        self._ahead += piece or b""
        if before:
            has_end = _HEAD_END.search(before + self._ahead)
        else:
            has_end = _HEAD_END.search(self._ahead, known)
        if has_end or len(self._ahead) < LARGEST_HEAD:
            return Head.ALL if has_end else Head.SOME
        return Head.TOO_MUCH if b"\n" in self._ahead else Head.ALL

    def sendall(self, data: Any, flags: int = 0) -> None:
        """All of `data`, an object with a buffer, is taken; see `send_rest`. OSError: the client is
        gone."""
        sent = 0
        if not self._unsent:
            with contextlib.suppress(BlockingIOError):
                sent = os.write(self.fileno(), data)  # send() waits for room, as long as it may
        self._unsent += memoryview(data)[sent:]

    def send_rest(self) -> bool:
        """Sends what there is room for. Whether nothing is left. OSError."""
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: os.write(self.fileno(), self._unsent)]
        return not self._unsent

    @property
    def unsent(self) -> int:
        """Bytes that wait for room; 0 when it is closed."""
        return len(self._unsent) if self.fileno() >= 0 else 0
