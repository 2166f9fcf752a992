"""Asks STUN servers which address the world sees this instance's socket under (RFC 8489).

The questions leave through the socket that packets to the peers leave through, because a NAT gives
each socket an address of its own; the engine hands the answers up. Whom to ask, when, and what
becomes of an answer is discovery's business. On the control thread only. Used by `transport.py`.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from comfy_cluster.errors import LocalProtocolError, RemoteProtocolError, TransferTimeout
from comfy_cluster.fastpath import MAX_STUN_TRANSACTIONS
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.sockets import Address, show_address
from stun_server.binding.messages import (
    HEADER_SIZE,
    TRANSACTION_ID_SIZE,
    MalformedMessage,
    Message,
    MessageClass,
    encode_binding_request,
    parse_message,
)

logger = logging.getLogger("comfy_cluster.transport")

RETRANSMIT_TIMEOUT = (
    0.5  # seconds until a request goes again; then it doubles (RFC 8489, 6.2.1: RTO)
)
MOST_TRANSMISSIONS = 7  # section 6.2.1: Rc
LAST_WAIT = 16 * RETRANSMIT_TIMEOUT  # seconds after the last one; section 6.2.1: Rm


class Retransmission:
    """When one request goes, goes again, and is over (RFC 8489, section 6.2.1)."""

    def __init__(self, now: float, *, timeout: float) -> None:
        """`timeout`: seconds after which nobody is interested any more."""
        self.due_at = now
        self.sent_count = 0
        self._interval = RETRANSMIT_TIMEOUT
        self._over_at = now + timeout

    def on_due(self, now: float) -> bool:
        """To be called from `due_at` on. True: the request is to be sent; False: it is over."""
        if self.sent_count == MOST_TRANSMISSIONS or now >= self._over_at:
            return False
        self.sent_count += 1
        is_last = self.sent_count == MOST_TRANSMISSIONS
        self.due_at = min(now + (LAST_WAIT if is_last else self._interval), self._over_at)
        self._interval *= 2
        return True


@dataclass(slots=True)
class StunStats:
    """What became of questions and answers; docs/protocol.md defines each."""

    requests_sent: int = 0
    answers: int = 0
    packets_ignored: int = 0
    timeouts: int = 0


class StunEngine(Protocol):
    """What is needed of a packet engine."""

    def expect_stun(self, transaction_id: bytes) -> None: ...

    def forget_stun(self, transaction_id: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class _Question:
    handle: Handle[Address]
    server: Address
    request: bytes
    retransmission: Retransmission


class BindingRequests:
    """All questions that have no answer yet, by transaction id."""

    def __init__(self, engine: StunEngine, *, send: Callable[[bytes, Address], object]) -> None:
        """`send` may fail: the request goes again."""
        self.stats = StunStats()
        self._engine = engine
        self._send = send
        self._questions: dict[bytes, _Question] = {}

    def ask(self, handle: Handle[Address], server: Address, *, timeout: float, now: float) -> None:
        """Fulfils the handle with the address that `server` sees, or fails it."""
        if len(self._questions) == MAX_STUN_TRANSACTIONS:
            text = f"{MAX_STUN_TRANSACTIONS} questions to STUN servers have no answer yet"
            handle.set_exception(LocalProtocolError(text))
            return
        transaction_id = secrets.token_bytes(TRANSACTION_ID_SIZE)
        request = encode_binding_request(transaction_id)
        retransmission = Retransmission(now, timeout=timeout)
        self._questions[transaction_id] = _Question(handle, server, request, retransmission)
        self._engine.expect_stun(transaction_id)
        self.handle_timers(now)

    def forget(self, handle: Handle[Address]) -> None:
        """Nobody waits for it any more."""
        for transaction_id, question in list(self._questions.items()):
            if question.handle is handle:
                self._end(transaction_id)

    def next_timer(self) -> float | None:
        """When `handle_timers` is due; None: not before something else happens."""
        return min((each.retransmission.due_at for each in self._questions.values()), default=None)

    def handle_timers(self, now: float) -> None:
        for transaction_id, question in list(self._questions.items()):
            if question.retransmission.due_at > now:
                continue
            if question.retransmission.on_due(now):
                self.stats.requests_sent += 1
                self._send(question.request, question.server)
                continue
            self.stats.timeouts += 1
            self._end(transaction_id)
            sent = question.retransmission.sent_count
            text = f"{question.handle.description}: no answer to {sent} requests"
            question.handle.set_exception(TransferTimeout(text))

    def on_packet(self, address: Address, packet: bytes) -> None:
        """Network bytes: whatever they are, nothing is raised."""
        transaction_id = packet[HEADER_SIZE - TRANSACTION_ID_SIZE : HEADER_SIZE]
        question = self._questions.get(transaction_id)
        message = _parse_response(packet, transaction_id)
        if message is None or question is None or _plain(address) != _plain(question.server):
            self.stats.packets_ignored += 1
            logger.debug("< %s STUN packet dropped", show_address(address))
            return
        self.stats.answers += 1
        self._end(transaction_id)
        if message.reflexive_address is not None:
            question.handle.set_result(_plain(message.reflexive_address))
            return
        text = f"{question.handle.description}: error {message.error_code} {message.reason}"
        question.handle.set_exception(RemoteProtocolError(text))

    def _end(self, transaction_id: bytes) -> None:
        del self._questions[transaction_id]
        self._engine.forget_stun(transaction_id)


def _parse_response(packet: bytes, transaction_id: bytes) -> Message | None:
    """A response that can be acted on (RFC 8489, sections 6.3.3 and 6.3.4)."""
    try:
        message = parse_message(packet)
    except MalformedMessage:
        return None
    if not message.is_response_to(transaction_id) or message.unknown_attributes:
        return None
    is_empty = message.message_class is MessageClass.SUCCESS and message.reflexive_address is None
    return None if is_empty else message


def _plain(address: Address) -> Address:
    """One form for one address: IPv4 as such, where an IPv6 socket says ::ffff:10.0.0.1."""
    ip = ipaddress.ip_address(address[0].partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip), address[1]
