"""How large packets to one peer may be: probed, one size after the other (RFC 8899).

A probe is a packet of nothing but its size; its acknowledgement proves the size. Three that stay
unanswered end the search, until `RAISE_INTERVAL` later. When nothing large gets through any more
while a small probe does (RFC 8899 section 4.3: a black hole), the size falls back to the smallest.

No clock: `now` comes in, in seconds; sizes are bytes of UDP payload.
"""

from __future__ import annotations

from .packet import MIN_PACKET_SIZE

# What common links carry less the UDP and the IP header: tunnels, Ethernet, cloud networks, jumbo
# frames. RFC 8899 section 5.3.2 leaves the choice of sizes open.
PROBE_SIZES = (1372, 1392, 1422, 1452, 1472, 3852, 8848, 8952, 8972)
PROBE_ATTEMPTS = 3  # MAX_PROBES; RFC 8899 section 5.1.2
VERIFY_ATTEMPTS = 6  # before a size that was proven is given up: random losses should not do that
RAISE_INTERVAL = 600.0  # seconds, PMTU_RAISE_TIMER; RFC 8899 section 5.1.1
PROBE_TIMEOUT_FLOOR = 0.1  # seconds; a probe that is merely late should not end the search

NEVER = float("inf")


class PathMtu:
    """The search for the largest packet of one path."""

    def __init__(self, packet_size: int, largest_packet_size: int, now: float) -> None:
        self.packet_size = packet_size
        self._largest = largest_packet_size
        self._probe_size = 0
        self._attempts = 0
        self.counter = -1  # of the probe that waits for an answer
        self.sent_at = 0.0
        self._is_verifying = False
        self.due_at = NEVER
        self._begin(self._next_size(), now)

    def probe_due_at(self) -> float:
        """When a probe should leave; `due_at` is also for what needs no packet."""
        return self.due_at if self._probe_size and self._attempts < self._limit else NEVER

    @property
    def probe_size(self) -> int:
        """The size of the probe that goes next."""
        return self._probe_size

    def on_probe_sent(self, counter: int, timeout: float, now: float) -> None:
        """The probe left; `timeout`: seconds after which an answer is overdue."""
        self.counter = counter
        self.sent_at = now
        self._attempts += 1
        self.due_at = now + max(timeout, PROBE_TIMEOUT_FLOOR)

    def on_timer(self, now: float) -> bool:
        """Do what is due. Return True when `packet_size` became smaller."""
        if now < self.due_at:
            return False
        if self._probe_size == 0:
            self._begin(self._next_size(), now)
            return False
        if self._attempts < self._limit:
            return False
        # What stays unanswered is too large, or the peer is gone: the next search will tell.
        has_shrunk = self._is_verifying and self._probe_size == self.packet_size > MIN_PACKET_SIZE
        if has_shrunk:
            self.packet_size = MIN_PACKET_SIZE
        self._end(now)
        return has_shrunk

    def on_acked(self, counter: int, now: float) -> bool:
        """A packet was acknowledged. Return True when it was a probe and raised `packet_size`."""
        if counter != self.counter:
            return False
        size = self._probe_size
        if self._is_verifying and size == MIN_PACKET_SIZE and size < self.packet_size:
            self._begin(self.packet_size, now)
            self._is_verifying = True
            return False
        is_larger = size > self.packet_size
        self.packet_size = max(size, self.packet_size)
        self._begin(0 if self._is_verifying else self._next_size(), now)
        return is_larger

    def verify(self, now: float) -> None:
        """Nothing comes back: find out whether only small packets do."""
        if self.packet_size > MIN_PACKET_SIZE and not self._is_verifying:
            self._begin(MIN_PACKET_SIZE, now)
            self._is_verifying = True

    @property
    def _limit(self) -> int:
        return VERIFY_ATTEMPTS if self._is_verifying else PROBE_ATTEMPTS

    def _next_size(self) -> int:
        sizes = (*PROBE_SIZES, self._largest)
        fitting = [size for size in sizes if self.packet_size < size <= self._largest]
        return min(fitting, default=0)

    def _begin(self, size: int, now: float) -> None:
        self._probe_size = size
        self._attempts = 0
        self.counter = -1
        self._is_verifying = False
        self.due_at = now
        if size == 0:
            self._end(now)

    def _end(self, now: float) -> None:
        self._probe_size = 0
        self._attempts = 0
        self.counter = -1
        self._is_verifying = False
        self.due_at = now + RAISE_INTERVAL if self._next_size() else NEVER
