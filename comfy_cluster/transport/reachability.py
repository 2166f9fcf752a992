"""What a single packet to an address tells of the way there, where no instance answers.

Sends empty UDP packets from a port of its own, beside the transport's socket, and reads what ICMP
and the kernel say of them. An instance drops such packets as it does all from strangers. Used by
`doctor/`; nothing here is part of a transfer.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import select
import socket
import struct
import sys
import time

from comfy_cluster.transport.sockets import family_of

Address = tuple[str, int]

PROBE_INTERVAL = 0.5  # seconds between two probes; hosts limit how many ICMP errors they send
# Seconds to wait for an error. A neighbour that does not answer to ARP is given up after three
# requests, a second apart.
PROBE_TIMEOUT = 3.5
LOCAL_TIMEOUT = 0.3  # seconds in which a packet to the own port surely arrives

# Linux's <linux/in.h>, <linux/in6.h>; Python does not name them.
_IP_RECVERR = 11
_IPV6_RECVERR = 25
# sock_extended_err of <linux/errqueue.h>: errno, origin, type, code.
_EXTENDED_ERROR = struct.Struct("=IBBB")
_ORIGIN_ICMP = 2
_ORIGIN_ICMP6 = 3
# Codes of "destination unreachable" that a filter sends: 9, 10 and 13 of RFC 1812, 1 of RFC 4443.
_PROHIBITED_CODES = {_ORIGIN_ICMP: (9, 10, 13), _ORIGIN_ICMP6: (1,)}


class Reachability(enum.Enum):
    """How a packet fared."""

    SILENT = "silent"
    """It left, and nothing came back: it arrived, or was dropped, or nobody is there."""
    NO_ROUTE = "no route"
    """This machine has no network that leads there."""
    BLOCKED_HERE = "blocked here"
    """A firewall of this machine does not let it out."""
    PORT_CLOSED = "port closed"
    """The machine is up, and nothing listens at that port."""
    PROHIBITED = "prohibited"
    """A firewall, there or on the way, refuses it."""
    UNREACHABLE = "unreachable"
    """No machine has that address, or a router knows no way."""


_OUTCOMES = {
    errno.EPERM: Reachability.BLOCKED_HERE,
    errno.EACCES: Reachability.BLOCKED_HERE,
    errno.ENETUNREACH: Reachability.NO_ROUTE,
    errno.ENETDOWN: Reachability.NO_ROUTE,
    errno.EADDRNOTAVAIL: Reachability.NO_ROUTE,
    errno.ECONNREFUSED: Reachability.PORT_CLOSED,
    errno.ECONNRESET: Reachability.PORT_CLOSED,  # Windows says it so
    errno.EHOSTUNREACH: Reachability.UNREACHABLE,
    errno.EHOSTDOWN: Reachability.UNREACHABLE,
}


def probe(address: Address, *, timeout: float = PROBE_TIMEOUT) -> Reachability:
    """Sends packets to an IP literal and port for up to `timeout` seconds, until one comes to
    nothing. Blocks that long where all is silent."""
    try:
        family = family_of(address[0])
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            _ask_for_errors(sock)
            sock.connect(address)
            sock.setblocking(False)
            return _probe(sock, timeout)
    except OSError as error:
        return _outcome_of(error)


def _probe(sock: socket.socket, timeout: float) -> Reachability:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        sock.send(b"")
        select.select([sock], [], [], min(PROBE_INTERVAL, left))
        queued = _queued_error(sock)
        if queued is not None:
            return queued
        with contextlib.suppress(BlockingIOError):
            sock.recv(1)
    return Reachability.SILENT


def _outcome_of(error: OSError) -> Reachability:
    return _OUTCOMES.get(error.errno or 0, Reachability.NO_ROUTE)


def _ask_for_errors(sock: socket.socket) -> None:
    """Linux tells ICMP errors other than "port closed" to those only who ask for them."""
    if sys.platform == "linux":
        is_ipv6 = sock.family == socket.AF_INET6
        level = socket.IPPROTO_IPV6 if is_ipv6 else socket.IPPROTO_IP
        sock.setsockopt(level, _IPV6_RECVERR if is_ipv6 else _IP_RECVERR, 1)


def _queued_error(sock: socket.socket) -> Reachability | None:
    """The first error that Linux kept for this socket."""
    if sys.platform != "linux":
        return None
    try:
        _, ancillary, _, _ = sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return None
    for _, _, data in ancillary:
        if len(data) >= _EXTENDED_ERROR.size:
            return _meaning(*_EXTENDED_ERROR.unpack_from(data))
    return None


def _meaning(number: int, origin: int, kind: int, code: int) -> Reachability:
    if code in _PROHIBITED_CODES.get(origin, ()):
        return Reachability.PROHIBITED
    return _outcome_of(OSError(number, ""))


def receives_from_this_machine(sock: socket.socket) -> bool:
    """Whether a packet from this machine reaches `sock`, which is bound; False: a firewall here
    drops it. Takes what waits in `sock`."""
    literal, port = sock.getsockname()[:2]
    if literal in ("0.0.0.0", "::"):
        literal = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
    try:
        with socket.socket(sock.family, socket.SOCK_DGRAM) as sender:
            sender.bind((literal, 0))
            sender.sendto(b"", (literal, port))
            return _arrives(sock, sender.getsockname()[:2])
    except OSError:
        return False


def _arrives(sock: socket.socket, sender: Address) -> bool:
    deadline = time.monotonic() + LOCAL_TIMEOUT
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([sock], [], [], left)[0]:
            return False
        with contextlib.suppress(BlockingIOError):
            if sock.recvfrom(1)[1][:2] == sender:
                return True
    return False
