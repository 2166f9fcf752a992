"""Answers STUN Binding requests over UDP (RFC 8489, section 12), on a thread of its own.

Started in each worker process after the fork: the kernel spreads the requests over all sockets
that share the port, and any worker may answer, since nothing is remembered. What is sent and read
is in `messages.py`, who asks too often in `rate_limit.py`.

How it works: one socket for IPv4 and one for IPv6, none of which blocks, and a pair of sockets that
ends the waiting. Only Binding requests are answered, so that no answer can cause another one, and
no answer has more than twice the request's bytes and 4 more, so that nobody gains by a forged
source. On Linux the answer leaves from the address that was asked: a NAT lets in nothing else. On
other systems with several addresses, give those to be asked instead of 0.0.0.0 and ::.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stun_server.binding.messages import (
    LARGEST_MESSAGE,
    UNKNOWN_ATTRIBUTE,
    Address,
    AttributeType,
    MalformedMessage,
    Message,
    encode_binding_error,
    encode_binding_success,
    is_stun_packet,
    parse_message,
)
from stun_server.binding.rate_limit import RateLimit

logger = logging.getLogger("stun_server.binding")

STUN_PORT = 3478
"""UDP; RFC 8489, section 18.6."""
ALL_ADDRESSES = ("0.0.0.0", "::")
RATE = 100.0
"""Requests per second that a network (IPv4 /24, IPv6 /56) gets answers for, from each process. An
instance asks about every 20 s; a whole data centre may be behind one network."""
BURST = 300.0
"""Requests at once, after silence: all instances of a network start together."""
MOST_NETWORKS = 10_000
"""Networks whose rate is remembered: about 2 MB."""
CLOSE_TIMEOUT = 1.0  # seconds; the thread ends within a turn
_MOST_AT_ONCE = 64  # packets of one socket before the other has its turn
_PAUSE = 0.1  # seconds without a look at the sockets after one of them failed
_LARGEST_GAIN = 4  # bytes of an answer above twice the request: a bare request over IPv6 has 20, 44

# Linux tells with each packet which of our addresses it was sent to, and lets us choose ours.
_KEEPS_ADDRESS = sys.platform == "linux"
_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)  # of Linux; no name before Python 3.12
_ANCILLARY_SIZE = 64  # bytes: one of both structures below, with its header


class CannotListen(OSError):
    """A UDP port cannot be bound; the text says which, why, and what to do."""


@dataclass(slots=True)
class BindingStats:
    """What one responder has done since its start; each counter only grows."""

    requests: int = 0
    """Binding requests within the rate limit, without a fault."""
    answers: int = 0
    """Answers that were sent: successes and errors 420."""
    malformed: int = 0
    """Packets that are no STUN message; they are dropped."""
    ignored: int = 0
    """STUN messages other than Binding requests; they are dropped, as answers to them may loop."""
    limited: int = 0
    """Packets above the rate limit of their network; they are dropped."""
    errors: int = 0
    """Packets that could not be received or answered, for a reason of this system's or a bug."""


class BindingResponder:
    """Owns its sockets and its thread. `start`, `close` and `stats` may be called by any thread.

    `addresses` are IP literals of this machine; `::` is left out where there is no IPv6. Port 0 is
    any free one. `rate` and `burst` are per network and process; `clock` is monotonic seconds.
    """

    def __init__(
        self,
        *,
        port: int = STUN_PORT,
        addresses: Sequence[str] = ALL_ADDRESSES,
        rate: float = RATE,
        burst: float = BURST,
        most_networks: int = MOST_NETWORKS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port = port
        self._addresses = addresses
        self._limit = RateLimit(rate, burst, most_networks=most_networks)
        self._clock = clock
        self._stats = BindingStats()  # the thread's; others read
        self._failures: set[str] = set()  # that were logged
        self._bound: tuple[Address, ...] = ()
        self._is_closing = threading.Event()
        self._wakers: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None

    @property
    def bound_addresses(self) -> tuple[Address, ...]:
        """Where it listens, IP literal and port each; empty before the start."""
        return self._bound

    def start(self) -> None:
        """Binds and begins to answer; call it after the fork.

        CannotListen: a port cannot be bound. RuntimeError: it was started or closed before.
        """
        if self._thread is not None or self._is_closing.is_set():
            raise RuntimeError("A BindingResponder is started once")
        sockets = open_sockets(self._addresses, self._port)
        self._bound = tuple(each.getsockname()[:2] for each in sockets)
        self._wakers = socket.socketpair()
        self._thread = threading.Thread(
            target=self._run, args=(sockets, self._wakers), name="stun-binding", daemon=True
        )
        self._thread.start()
        where = ", ".join(map(_text_of, self._bound))
        logger.info("= answers STUN Binding requests at UDP %s", where)

    def close(self) -> None:
        """Ends the thread and frees the ports, within CLOSE_TIMEOUT seconds. Twice is fine."""
        self._is_closing.set()
        if self._wakers is not None:
            with contextlib.suppress(OSError):  # it has ended
                self._wakers[1].send(b"\0")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def stats(self) -> BindingStats:
        """The counters now."""
        return replace(self._stats)

    # On the thread

    def _run(self, sockets: list[socket.socket], wakers: tuple[socket.socket, ...]) -> None:
        with contextlib.ExitStack() as stack:
            for each in (*sockets, *wakers):
                stack.enter_context(each)
            selector = stack.enter_context(selectors.DefaultSelector())
            for each in (*sockets, wakers[0]):
                selector.register(each, selectors.EVENT_READ)
            while not self._is_closing.is_set():
                for key, _ in selector.select():
                    if isinstance(key.fileobj, socket.socket) and key.fileobj is not wakers[0]:
                        self._serve(key.fileobj)

    def _serve(self, sock: socket.socket) -> None:
        """Answers what is there. Whatever happens, the thread goes on: it is the only one."""
        try:
            for _ in range(_MOST_AT_ONCE):
                packet = _receive(sock)
                if packet is None or self._is_closing.is_set():
                    return
                self._on_packet(sock, packet)
        except Exception as error:
            self._on_failure("receive", error)
            self._is_closing.wait(_PAUSE)  # or a socket that is broken for good keeps a core busy

    def _on_packet(self, sock: socket.socket, packet: _Packet) -> None:
        try:
            answer = self._answer_to(packet)
            if answer is not None:
                _send(sock, answer, packet)
                self._stats.answers += 1
        except Exception as error:
            self._on_failure("answer", error)

    def _answer_to(self, packet: _Packet) -> bytes | None:
        if not is_stun_packet(packet.data) or not packet.source[1]:
            self._stats.malformed += 1
            return None
        if not self._limit.takes(packet.source[0], self._clock()):
            self._stats.limited += 1
            return None
        try:
            message = parse_message(packet.data)
        except MalformedMessage as error:
            self._stats.malformed += 1
            logger.debug("< %s: malformed: %s", _text_of(packet.source), error)
            return None
        if not message.is_binding_request:
            self._stats.ignored += 1
            return None
        self._stats.requests += 1
        return answer_to(message, packet.source[:2])

    def _on_failure(self, what: str, error: Exception) -> None:
        self._stats.errors += 1
        kind = f"{what}: {type(error).__name__} {getattr(error, 'errno', '')}"
        if kind not in self._failures:  # once; the counter tells how often
            self._failures.add(kind)
            is_ours = not isinstance(error, OSError)
            logger.warning("! cannot %s a STUN packet: %s", what, error, exc_info=is_ours)


def answer_to(request: Message, source: Address) -> bytes:
    """The answer to a Binding request (RFC 8489, section 6.3.1): where it came from, or error 420.

    Has FINGERPRINT if the request has, and never SOFTWARE.
    """
    fingerprint = request.first(AttributeType.FINGERPRINT) is not None
    unknown = request.unknown_attributes
    if not unknown:
        return encode_binding_success(request.transaction_id, source, fingerprint=fingerprint)
    for reason in (None, ""):  # the words for people, if there is room
        answer = encode_binding_error(
            request.transaction_id,
            UNKNOWN_ATTRIBUTE,
            unknown_attributes=unknown,
            reason=reason,
            fingerprint=fingerprint,
        )
        if len(answer) <= 2 * len(request.data) + _LARGEST_GAIN:
            break
    return answer


# Sockets


def open_sockets(addresses: Iterable[str], port: int) -> list[socket.socket]:
    """One bound UDP socket for each address, which other processes of this user may share.

    Port 0: any free one, the same for all. CannotListen: one of them cannot be bound.
    """
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            opened = _open_socket(address, port)
            if opened is not None:
                sockets.append(opened)
                port = opened.getsockname()[1]
        if not sockets:
            raise CannotListen("Cannot answer STUN: no address to listen on, as IPv6 is missing")
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _open_socket(address: str, port: int) -> socket.socket | None:
    is_ipv6 = ":" in address
    try:
        sock = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            _set_options(sock, is_ipv6=is_ipv6)
            sock.bind((address, port))
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        if address == "::" and error.errno in _NO_IPV6:
            logger.info("= no IPv6 here: STUN is answered over IPv4 only")
            return None
        raise _cannot_listen(error, (address, port)) from error
    return sock


# Of socket(), of setsockopt() and of bind(): compiled without it, switched off.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.ENOPROTOOPT, errno.EADDRNOTAVAIL, errno.EPFNOSUPPORT)


def _set_options(sock: socket.socket, *, is_ipv6: bool) -> None:
    sock.setblocking(False)
    if hasattr(socket, "SO_REUSEPORT"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if is_ipv6:
        if not hasattr(socket, "IPV6_V6ONLY"):  # its socket would take the IPv4 one's packets
            raise OSError(errno.ENOPROTOOPT, "IPv6 sockets cannot be kept apart from IPv4")
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if _KEEPS_ADDRESS:
        if is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def _cannot_listen(error: OSError, address: Address) -> CannotListen:
    if error.errno == errno.EADDRINUSE:
        advice = "another program has that port: end it, or choose another port"
        if not hasattr(socket, "SO_REUSEPORT"):
            advice += "; on this system only one worker process can have it"
    elif error.errno == errno.EACCES:
        advice = "ports below 1024 need privileges: choose another port"
    elif error.errno == errno.EADDRNOTAVAIL:
        advice = "choose an address of this machine"
    else:
        advice = "choose another address or port"
    text = f"Cannot answer STUN at UDP {_text_of(address)}: {error.strerror or error}; {advice}"
    return CannotListen(text)


def _text_of(address: Sequence[Any]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


# Packets


@dataclass(frozen=True, slots=True)
class _Packet:
    data: bytes
    source: tuple[Any, ...]
    """As the socket gives it: for IPv6 with flow and scope."""
    control: tuple[tuple[int, int, bytes], ...]
    """For sendmsg: the address that was asked."""


def _receive(sock: socket.socket) -> _Packet | None:
    """The next packet, one byte too long if it is longer than any message; None: there is none."""
    try:
        if not _KEEPS_ADDRESS:
            return _Packet(*sock.recvfrom(LARGEST_MESSAGE + 1), ())
        data, control, _, source = sock.recvmsg(LARGEST_MESSAGE + 1, _ANCILLARY_SIZE)
    except (BlockingIOError, ConnectionResetError):  # Windows: an earlier answer found nobody
        return None
    return _Packet(data, source, tuple(filter(None, map(_control_for_answer, control))))


def _control_for_answer(item: tuple[int, int, bytes]) -> tuple[int, int, bytes] | None:
    """The address asked becomes the one that answers. Routes choose the interface, as for all."""
    level, kind, value = item
    if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(value) >= 12:
        return level, kind, bytes(4) + value[4:8] + bytes(4)  # in_pktinfo: ipi_spec_dst
    if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(value) >= 20:
        if value[0] == 0xFF:  # multicast: nobody can answer from there
            return None
        is_link_local = value[0] == 0xFE and value[1] & 0xC0 == 0x80
        return level, kind, value[:16] + (value[16:20] if is_link_local else bytes(4))
    return None


def _send(sock: socket.socket, answer: bytes, packet: _Packet) -> None:
    if packet.control:
        sock.sendmsg([answer], packet.control, 0, packet.source)
    else:
        sock.sendto(answer, packet.source)
