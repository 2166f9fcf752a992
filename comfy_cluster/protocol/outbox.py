"""Messages to one peer that need an ACK: sent, sent again, delivered or failed.

How it works: while the peer is not connected messages wait. Then at most `WINDOW` of them are on
their way at once, each with its own retry timer: at first the measured retransmit timeout, doubled
with every try up to `LONGEST_RETRY`. A message fails `message_timeout` after it was first
sent, or after it was posted if the peer never connected. Every message ends in exactly one call of
its listener, except when it is cancelled. Order of arrival is not kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from comfy_cluster.errors import ClusterError, TransferTimeout
from comfy_cluster.fastpath import RttEstimator
from comfy_cluster.protocol.settings import ProtocolSettings
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.protocol.timers import TimerKind, Timers
from comfy_cluster.wire import Message

logger = logging.getLogger("comfy_cluster.protocol")

WINDOW = 64  # messages without ACK; about 75 KB, which any socket buffer holds
SPAN = 2_048  # how far the newest may be ahead of the oldest one without ACK; see inbox.py
# Seconds. With 20 % loss each way a message and its ACK get through in 64 of 100 tries: 20 more of
# them in the usual time limit leave one failure in a billion messages, at next to no traffic.
LONGEST_RETRY = 1.0
SHORTEST_RETRY = 0.02  # seconds; a control thread that waits for the GIL needs as long to answer


class MessageListener(Protocol):
    """Whoever posted a message learns how it ended."""

    def on_message_delivered(self, message_id: int, now: float) -> None: ...

    def on_message_failed(self, message_id: int, error: ClusterError, now: float) -> None: ...


@dataclass(slots=True)
class PendingMessage:
    message: Message
    packed: bytes
    listener: MessageListener
    fails_at: float
    position: int = 0
    """Counts the messages of this outbox in the order of their first sending."""
    first_sent_at: float = 0.0
    retry_delay: float = 0.0
    tries: int = 0


class Outbox:
    """`send` gives a packed message to the engine; it may be lost."""

    def __init__(
        self,
        peer: int,
        *,
        settings: ProtocolSettings,
        timers: Timers,
        stats: ProtocolStats,
        send: Callable[[bytes], object],
    ) -> None:
        self.rtt = RttEstimator()
        self._peer = peer
        self._settings = settings
        self._timers = timers
        self._stats = stats
        self._send = send
        self._is_connected = False
        self._position = 0
        self._waiting: dict[int, PendingMessage] = {}
        self._in_flight: dict[int, PendingMessage] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    def post(self, message: Message, packed: bytes, listener: MessageListener, now: float) -> None:
        """Take a message; it goes at once when the peer is connected and the window has room."""
        fails_at = now + self._settings.message_timeout
        self._waiting[message.message_id] = PendingMessage(message, packed, listener, fails_at)
        self._stats.messages_sent += 1
        if not self._is_connected:
            self._set_timer(message.message_id, fails_at)
        self._send_waiting(now)

    def cancel(self, message_id: int, now: float) -> bool:
        """Forget a message without telling its listener. False: there is none."""
        if self._take(message_id) is None:
            return False
        self._send_waiting(now)
        return True

    def on_connected(self, now: float) -> None:
        self._is_connected = True
        self.rtt = RttEstimator()
        for message_id in self._waiting:
            self._timers.cancel(TimerKind.MESSAGE, (self._peer, message_id))
        self._send_waiting(now)

    def on_lost(self, error: ClusterError, now: float) -> None:
        """The connection is over: all messages fail with `error`."""
        self._is_connected = False
        failed = [*self._in_flight.values(), *self._waiting.values()]
        for pending in failed:
            self._take(pending.message.message_id)
        for pending in failed:
            pending.listener.on_message_failed(pending.message.message_id, error, now)

    def on_ack(self, message_id: int, now: float) -> None:
        pending = self._in_flight.get(message_id)
        if pending is None:
            return
        self._take(message_id)
        if pending.tries == 1:  # Karn's algorithm: which try the ACK is for is known only then
            self.rtt.on_sample(now - pending.first_sent_at)
        self._send_waiting(now)
        pending.listener.on_message_delivered(message_id, now)

    def on_timer(self, message_id: int, now: float) -> None:
        pending = self._in_flight.get(message_id) or self._waiting.get(message_id)
        if pending is None:
            return
        if now < pending.fails_at:
            self._resend(pending, now)
            return
        self._take(message_id)
        self._stats.messages_timed_out += 1
        error = TransferTimeout(self._timeout_text(pending), peer=self._peer)
        logger.warning("! %d %s", self._peer, error)
        self._send_waiting(now)
        pending.listener.on_message_failed(message_id, error, now)

    def _timeout_text(self, pending: PendingMessage) -> str:
        name = f"ACK timeout for message {pending.message.message_id}"
        kind = f"{pending.message.message_type.name} to instance {self._peer}"
        seconds = self._settings.message_timeout
        if pending.tries == 0:
            return f"{name}: {kind} was not sent, the instance is not connected for {seconds:g} s"
        return f"{name}: {kind} was sent {pending.tries} times in {seconds:g} s without an answer"

    def _take(self, message_id: int) -> PendingMessage | None:
        self._timers.cancel(TimerKind.MESSAGE, (self._peer, message_id))
        return self._in_flight.pop(message_id, None) or self._waiting.pop(message_id, None)

    def _send_waiting(self, now: float) -> None:
        while self._is_connected and self._waiting and self._has_room:
            message_id = next(iter(self._waiting))
            pending = self._in_flight[message_id] = self._waiting.pop(message_id)
            pending.position = self._position
            self._position += 1
            pending.first_sent_at = now
            pending.fails_at = now + self._settings.message_timeout
            pending.retry_delay = max(self.rtt.retransmit_timeout, SHORTEST_RETRY)
            self._transmit(pending, now)
            logger.debug("> %d %s %d", self._peer, pending.message.message_type.name, message_id)

    @property
    def _has_room(self) -> bool:
        if not self._in_flight:
            return True
        oldest = next(iter(self._in_flight.values()))
        return len(self._in_flight) < WINDOW and self._position - oldest.position < SPAN

    def _resend(self, pending: PendingMessage, now: float) -> None:
        self._stats.messages_resent += 1
        pending.retry_delay *= 2
        self._transmit(pending, now)
        is_late = now - pending.first_sent_at >= self._settings.ack_timeout
        logger.log(
            logging.INFO if is_late else logging.DEBUG,
            "Retrying message %d (%s) to instance %d, try %d",
            pending.message.message_id,
            pending.message.message_type.name,
            self._peer,
            pending.tries,
        )

    def _transmit(self, pending: PendingMessage, now: float) -> None:
        pending.tries += 1
        self._send(pending.packed)
        delay = min(pending.retry_delay, LONGEST_RETRY, self._settings.ack_timeout)
        self._set_timer(pending.message.message_id, min(now + delay, pending.fails_at))

    def _set_timer(self, message_id: int, at: float) -> None:
        self._timers.set(TimerKind.MESSAGE, (self._peer, message_id), at)
