"""A TCP cubic flow on the simulated network, for tests of what ours does beside one.

How it works. `CubicSender` sends packets without end, as many as its window allows, at once when a
SACK comes: slow start with HyStart as Linux has it, then CUBIC (RFC 9438) with its region as
friendly as Reno, fast convergence, and one reduction a round trip. Nothing is sent again: what
counts is how many packets arrive. `CubicReceiver` acknowledges every second packet.
"""

from __future__ import annotations

import struct
from collections import deque

from tests.simnet import Address

INITIAL_WINDOW = 10.0  # packets; RFC 6928
BETA = 0.7  # RFC 9438 section 4.6
C = 0.4  # RFC 9438 section 5.1
HYSTART_RANGE = (0.004, 0.016)  # seconds of delay that end slow start; RFC 9406 section 4.3
REORDERING = 3  # packets that arrive later and show that one is lost; RFC 5681 section 3.2
ACK_DELAY = 0.04
MINIMUM_TIMEOUT = 0.2

_NUMBER = struct.Struct("<Q")
_ACK = struct.Struct("<QQ")  # acknowledged since the last one: the first, and one after the last
NEVER = float("inf")


class CubicReceiver:
    """Acknowledges what comes, by ranges of packet numbers."""

    def __init__(self) -> None:
        self.received = 0
        self._first = self._end = 0
        self._address: Address | None = None
        self._ack_at = NEVER
        self._acks: list[tuple[Address, bytes]] = []

    def receive_packet(self, packet: bytes, address: Address, now: float) -> None:
        (number,) = _NUMBER.unpack_from(packet)
        self.received += 1
        self._address = address
        has_gap = number != self._end
        if has_gap:
            self._acknowledge()
            self._first = number
        self._end = number + 1
        if has_gap or self._end - self._first >= 2:
            self._acknowledge()
        else:
            self._ack_at = now + ACK_DELAY

    def _acknowledge(self) -> None:
        self._ack_at = NEVER
        if self._end > self._first and self._address is not None:
            self._acks.append((self._address, _ACK.pack(self._first, self._end)))
            self._first = self._end

    def packets_to_send(self, now: float) -> list[tuple[Address, bytes]]:
        if now >= self._ack_at:
            self._acknowledge()
        acks, self._acks = self._acks, []
        return acks

    def next_timer(self) -> float | None:
        if self._acks:
            return 0.0
        return None if self._ack_at == NEVER else self._ack_at


class CubicSender:
    """Sends from `starts_at` on to `target`, packets of `packet_size` bytes."""

    def __init__(self, target: Address, *, packet_size: int, starts_at: float) -> None:
        self.window = INITIAL_WINDOW
        self.is_slow_start = True
        self._target = target
        self._padding = bytes(packet_size - _NUMBER.size)
        self._starts_at = starts_at
        self._next = 0
        self._in_flight: deque[tuple[int, float]] = deque()  # numbers and when they were sent
        self._min_rtt = NEVER
        self._smoothed = 0.0
        self._variance = 0.0
        self._timeout_at = NEVER
        self._recovery_end = 0
        self._maximum = 0.0
        self._last_maximum = 0.0
        self._friendly = 0.0
        self._plateau = 0.0
        self._epoch_at = -1.0
        self._round_end = 0
        self._round_rtt = NEVER
        self._last_round_rtt = NEVER

    def next_timer(self) -> float | None:
        if self._next == 0:
            return self._starts_at
        if len(self._in_flight) < int(self.window):
            return 0.0
        return self._timeout_at

    def packets_to_send(self, now: float) -> list[tuple[Address, bytes]]:
        if now < self._starts_at:
            return []
        if now >= self._timeout_at:
            self._on_timeout(now)
        packets = []
        while len(self._in_flight) < int(self.window):
            self._in_flight.append((self._next, now))
            packets.append((self._target, _NUMBER.pack(self._next) + self._padding))
            self._next += 1
        if packets and self._timeout_at == NEVER:
            self._set_timeout(now)
        return packets

    def receive_packet(self, packet: bytes, address: Address, now: float) -> None:
        first, end = _ACK.unpack(packet)
        in_flight, acked, lost = self._in_flight, 0, 0
        newest_sent_at, newest_lost = 0.0, -1
        kept: list[tuple[int, float]] = []
        while in_flight and in_flight[0][0] < end:
            number, sent_at = in_flight.popleft()
            if number >= first:
                acked += 1
                newest_sent_at = sent_at
            elif number + REORDERING < end:
                lost += 1
                newest_lost = number
            else:
                kept.append((number, sent_at))
        in_flight.extendleft(reversed(kept))
        if acked:
            self._set_timeout(now)
            self._on_rtt(now - newest_sent_at, end)
            if first >= self._recovery_end:
                self._grow(acked, now)
        if lost and newest_lost >= self._recovery_end:
            self._reduce()

    def _set_timeout(self, now: float) -> None:
        self._timeout_at = now + max(MINIMUM_TIMEOUT, self._smoothed + 4 * self._variance)

    def _on_timeout(self, now: float) -> None:
        self._reduce()
        self.window = 1.0
        self.is_slow_start = True
        self._in_flight.clear()
        self._timeout_at = NEVER

    def _on_rtt(self, rtt: float, end: int) -> None:
        self._min_rtt = min(self._min_rtt, rtt)
        self._variance += (abs(rtt - self._smoothed) - self._variance) / 4
        self._smoothed = self._smoothed + (rtt - self._smoothed) / 8 if self._smoothed else rtt
        self._round_rtt = min(self._round_rtt, rtt)
        if end <= self._round_end:
            return
        least, most = HYSTART_RANGE
        limit = self._min_rtt + min(max(self._min_rtt / 8, least), most)
        if self.is_slow_start and self.window >= 16 and self._round_rtt >= limit:
            self.is_slow_start = False
        self._round_end, self._round_rtt = self._next, NEVER

    def _grow(self, acked: int, now: float) -> None:
        if len(self._in_flight) + acked + REORDERING < self.window:
            return  # it is not the window that limits
        if self.is_slow_start:
            self.window += acked
            return
        if self._epoch_at < 0.0:
            self._epoch_at = now
            self._friendly = self.window
            self._maximum = max(self._maximum, self.window)
            self._plateau = ((self._maximum - self.window) / C) ** (1 / 3)
        target = C * (now - self._epoch_at + self._smoothed - self._plateau) ** 3 + self._maximum
        target = min(target, 1.5 * self.window)
        growth = max(target - self.window, 0.01) / self.window
        self._friendly += 3 * (1 - BETA) / (1 + BETA) * acked / self._friendly  # section 4.3
        self.window = max(self.window + growth * acked, self._friendly)

    def _reduce(self) -> None:
        self._recovery_end = self._next
        self._maximum = self.window
        if self.window < self._last_maximum:  # section 4.7: room for who came later
            self._maximum = self.window * (1 + BETA) / 2
        self._last_maximum = self.window
        self.window = max(self.window * BETA, 2.0)
        self.is_slow_start = False
        self._epoch_at = -1.0
