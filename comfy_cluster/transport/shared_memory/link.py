"""One Unix socket to one peer: records and descriptors, both ways, without ever blocking.

It knows neither proof nor payload. What a peer does not read waits here, up to a bound. Control
thread only.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

from comfy_cluster.errors import RemoteProtocolError
from comfy_cluster.transport.shared_memory import forks, records, system_calls
from comfy_cluster.transport.shared_memory.records import Record

# Records that wait for a peer that does not read: its control thread may stand still for seconds.
LARGEST_WAITING = 16_384
LARGEST_FD_COUNT = 4  # that are taken beside a record, to be closed: one is right
RECORDS_A_TURN = 64  # so that one peer does not keep the control thread for itself
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class LinkLost(Exception):
    """The other end is gone."""


class RuleBroken(LinkLost):
    """The other end sent what it must not send."""


class Link:
    """Owns its socket. Closed in the child of a fork, where it has no business."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._waiting: deque[tuple[bytes, int | None]] = deque()
        self.on_close: Callable[[], object] = _nothing
        """Called once, just before the socket is closed."""
        self.is_closed = False
        forks.close_in_child(sock)

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def is_waiting(self) -> bool:
        """`flush` when the socket is writable."""
        return bool(self._waiting)

    def is_of_same_user(self) -> bool:
        """SO_PEERCRED: set by the kernel when the two ends were joined."""
        size = _CREDENTIALS.size
        found = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        _, user, _ = _CREDENTIALS.unpack(found)
        return int(user) == os.geteuid()

    def send(self, record: Record, fd: int | None = None) -> None:
        """Sends now or when the socket has room; `fd` may be closed afterwards. LinkLost."""
        packed = records.pack(record)
        if self._waiting or not self._is_sent(packed, fd):
            if len(self._waiting) >= LARGEST_WAITING:
                raise LinkLost(f"{LARGEST_WAITING} records wait: it does not read")
            try:
                self._waiting.append((packed, None if fd is None else os.dup(fd)))
            except OSError as error:
                raise LinkLost(f"no descriptor for a segment: {error.strerror}") from None

    def flush(self) -> None:
        """Sends what waits, as far as there is room. LinkLost."""
        while self._waiting:
            packed, fd = self._waiting[0]
            if not self._is_sent(packed, fd):
                return
            self._waiting.popleft()
            if fd is not None:
                os.close(fd)

    def _is_sent(self, packed: bytes, fd: int | None) -> bool:
        try:
            if fd is None:
                self._sock.send(packed)
            else:
                socket.send_fds(self._sock, [packed], [fd])
        except BlockingIOError:
            return False
        except OSError as error:
            # ETOOMANYREFS too: the peer lets descriptors pile up in its socket.
            raise LinkLost(error.strerror or str(error)) from None
        return True

    def receive(
        self, limit: int = RECORDS_A_TURN
    ) -> tuple[list[tuple[Record, int | None]], LinkLost | None]:
        """What has come, with descriptors that are the caller's now, and what ended the link."""
        received: list[tuple[Record, int | None]] = []
        try:
            while len(received) < limit and (each := self._receive_one()) is not None:
                received.append(each)
                if not system_calls.has_input(self._sock.fileno()):
                    break  # an end, if that is what comes next, is told by the next look
        except LinkLost as error:
            return received, error
        return received, None

    def _receive_one(self) -> tuple[Record, int | None] | None:
        room = socket.CMSG_SPACE(LARGEST_FD_COUNT * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self._sock.recvmsg(
                records.LARGEST_RECORD + 1, room, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise LinkLost(error.strerror or str(error)) from None
        fds = _fds_of(ancillary)
        try:
            record = _parse(data, len(fds))
        except LinkLost:
            for fd in fds:
                os.close(fd)
            raise
        return record, fds[0] if fds else None

    def close(self) -> None:
        """Twice is fine."""
        if self.is_closed:
            return
        self.is_closed = True
        self.on_close()
        for _, fd in self._waiting:
            close_fd(fd)
        self._waiting.clear()
        with contextlib.suppress(OSError):  # it was never connected
            self._sock.shutdown(socket.SHUT_RDWR)  # whoever else holds a copy of the descriptor
        self._sock.close()


def _nothing() -> None:
    pass


def _parse(data: bytes, fd_count: int) -> Record:
    if not data:
        raise LinkLost("it closed the link")
    try:
        record = records.parse(data)
    except RemoteProtocolError as error:
        raise RuleBroken(str(error)) from None
    if fd_count > (1 if isinstance(record, records.Filled) else 0):
        raise RuleBroken(f"{fd_count} descriptors with a {type(record).__name__}")
    return record


def close_fd(fd: int | None) -> None:
    if fd is not None:
        system_calls.close(fd)


def _fds_of(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
