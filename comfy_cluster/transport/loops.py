"""Receive and send loops in Python: they drive an engine that has none of its own.

The pure-Python engine runs on them; the compiled one brings `nogil` loops and `engine_threads.py`
chooses. They know sockets, the clock and three methods of the engine; no peer, no buffer.

How it works: the receive loop sleeps in `select`, gives each packet to `receive_packet`, and after
a burst wakes the send loop (a SACK may have opened the window) and the control thread (there may be
events). The send loop sleeps on a condition until the engine's next timer, because conditions wait
with microseconds where `select` rounds up to milliseconds, and pacing needs less than that.
"""

from __future__ import annotations

import errno
import logging
import math
import selectors
import socket
import threading
import time
from typing import Protocol

from comfy_cluster.fastpath import MAX_PACKET_SIZE
from comfy_cluster.transport.wakeup import WakeUp

Address = tuple[str, int]

logger = logging.getLogger("comfy_cluster.transport")

RECEIVE_BURST = 64  # packets read before the other threads are woken
LAST_WAIT = 0.05  # seconds for a full socket, from the stop on, for all that was chosen to leave
WRITABLE_CHECK_INTERVAL = 0.1  # seconds between two looks whether to stop, while the buffer is full

# What the network or the other end may cause at any time. The packet is lost, and that is all:
# the engine sends again what was lost, and silence ends the peer.
PASSING_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNREFUSED",  # ICMP port unreachable: the peer is not there, or not yet
        "ECONNRESET",  # the same on Windows
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETRESET",
        "ENETUNREACH",
        "EADDRNOTAVAIL",  # the interface lost its address
        "EMSGSIZE",
        "ENOBUFS",
        "ENOMEM",
        "EPERM",  # a firewall rule on this machine
        "EACCES",
        "EINVAL",  # bound to loopback, sent to elsewhere
        "EAFNOSUPPORT",
        "EINTR",
    )
    if hasattr(errno, name)
)


class Engine(Protocol):
    """What the loops need of a packet engine."""

    def receive_packet(self, packet: bytes, address: Address, now: float) -> None: ...

    def packets_to_send(self, now: float) -> list[tuple[Address, bytes]]: ...

    def next_timer(self) -> float | None: ...


class PythonLoops:
    """One socket, one engine, two loops; each loop runs on a thread of its own until `stop`."""

    def __init__(self, engine: Engine, sock: socket.socket) -> None:
        self._engine = engine
        self._sock = sock
        self._events = WakeUp()
        self._stop_receiving = WakeUp()
        self._changed = threading.Condition()
        self._has_changed = False
        self._is_stopping = False
        self._stopped_at = math.inf
        self._receive_errors: dict[str, int] = {}  # the receive loop's
        self._send_errors: dict[str, int] = {}  # the send loop's

    @property
    def event_fd(self) -> int:
        """Readable when the engine may have events."""
        return self._events.fileno()

    def clear_event_fd(self) -> None:
        self._events.clear()

    def wake_sender(self) -> None:
        """The engine may have something new to send."""
        with self._changed:
            self._has_changed = True
            self._changed.notify()

    def stop(self) -> None:
        """Lets both loops end; returns at once."""
        self._is_stopping = True
        self._stopped_at = min(self._stopped_at, time.monotonic())
        self._stop_receiving.set()
        self.wake_sender()

    def close(self) -> None:
        """To be called when both loops have ended. Twice is fine."""
        self._events.close()
        self._stop_receiving.close()

    def stats(self) -> dict[str, int]:
        """Errors of the socket by name: `receive_errors_*`, `send_errors_*`."""
        received = {f"receive_errors_{name}": n for name, n in self._receive_errors.items()}
        return received | {f"send_errors_{name}": n for name, n in self._send_errors.items()}

    # Receiving

    def receive_loop(self) -> None:
        """Returns after `stop`; OSError when the socket is of no use any more."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            selector.register(self._stop_receiving, selectors.EVENT_READ)
            while not self._is_stopping:
                selector.select()
                if self._receive_burst():
                    self._events.set()
                    self.wake_sender()

    def _receive_burst(self) -> int:
        for count in range(RECEIVE_BURST):
            try:
                packet, address = self._sock.recvfrom(MAX_PACKET_SIZE + 1)
            except BlockingIOError:
                return count
            except OSError as error:
                _count_or_raise(error, self._receive_errors)
            else:
                self._engine.receive_packet(packet, address[:2], time.monotonic())
        return RECEIVE_BURST

    # Sending

    def send_loop(self) -> None:
        """Returns after `stop`; OSError when the socket is of no use any more."""
        with selectors.DefaultSelector() as writable:
            writable.register(self._sock, selectors.EVENT_WRITE)
            while not self._is_stopping:
                packets = self._engine.packets_to_send(time.monotonic())
                for address, packet in packets:
                    self._send(packet, address, writable)
                if not packets:
                    self._sleep_until(self._engine.next_timer())

    def _send(self, packet: bytes, address: Address, writable: selectors.BaseSelector) -> None:
        """After the stop too, as it may be a GOODBYE; a full socket has `LAST_WAIT` then."""
        while True:
            try:
                self._sock.sendto(packet, address)
            except BlockingIOError:
                left = self._stopped_at + LAST_WAIT - time.monotonic()
                if left < 0:
                    return
                writable.select(min(WRITABLE_CHECK_INTERVAL, left))
                continue
            except OSError as error:
                _count_or_raise(error, self._send_errors)
            return

    def _sleep_until(self, due: float | None) -> None:
        timeout = None if due is None else due - time.monotonic()
        with self._changed:
            if not self._has_changed and (timeout is None or timeout > 0):
                self._changed.wait(timeout)
            self._has_changed = False


def _count_or_raise(error: OSError, counts: dict[str, int]) -> None:
    if error.errno is None or error.errno not in PASSING_ERRORS:
        raise error
    name = errno.errorcode[error.errno]
    if name not in counts:
        logger.debug("! the socket reports %s for the first time: %s", name, error)
    counts[name] = counts.get(name, 0) + 1
