"""The clockwork of one path to a peer: round-trip time, and pacing of what leaves.

No clock: `now` and samples come in, in seconds. Sizes are bytes of UDP payload. The arithmetic is
kept in the same order as in the compiled engine, so that both give the same doubles.
"""

from __future__ import annotations

INITIAL_RTT = 0.1  # seconds, before the first sample; RFC 9002 has 0.333, for the open internet
GRANULARITY = 0.001  # seconds; RFC 9002 section 6.1.2
REORDERING_SHARE = 0.25  # of the smallest round trip: RFC 8985 section 6.2
REORDERING_LIMIT = 8.0  # smoothed round trips that a late packet is waited for, on top
PACING_BURST_PACKETS = 10  # RFC 9002 section 7.7
PACING_BURST_TIME = 0.002  # seconds; threads that wake up late must be able to catch up


class RttEstimator:
    """Smoothed round-trip time and its variance (RFC 6298 section 2, RFC 9002 section 5)."""

    __slots__ = ("_latest", "_minimum", "_smoothed", "_variance")

    def __init__(self) -> None:
        self._latest = 0.0
        self._smoothed = INITIAL_RTT
        self._variance = INITIAL_RTT / 2
        self._minimum = 0.0

    @property
    def has_sample(self) -> bool:
        return self._latest > 0.0

    @property
    def latest(self) -> float:
        return self._latest

    @property
    def smoothed(self) -> float:
        return self._smoothed

    @property
    def variance(self) -> float:
        return self._variance

    @property
    def minimum(self) -> float:
        """The smallest sample, 0.0 before the first."""
        return self._minimum

    @property
    def retransmit_timeout(self) -> float:
        """Seconds after which an answer is overdue; no floor of a second, links are short here."""
        return self._smoothed + max(4.0 * self._variance, GRANULARITY)

    def loss_delay(self, reordering: float) -> float:
        """Seconds after which a packet that a later one overtook counts as lost.

        `reordering` is by how much late packets have exceeded `smoothed`: the window of RACK (RFC
        8985 section 6.2), which grows to one round trip; here to several, as nothing waits for
        order.
        """
        allowance = max(min(reordering, REORDERING_LIMIT * self._smoothed), GRANULARITY)
        allowance = max(REORDERING_SHARE * self._minimum, allowance)
        return max(self._smoothed, self._latest) + allowance

    def on_sample(self, sample: float, ack_delay: float = 0.0) -> None:
        """Take a round trip of `sample` seconds, of which the peer held back `ack_delay`."""
        sample = max(sample, 1e-6)
        first = self._latest == 0.0
        self._minimum = sample if first else min(self._minimum, sample)
        if sample - ack_delay >= self._minimum:
            sample = sample - ack_delay
        self._latest = sample
        if first:
            self._smoothed = sample
            self._variance = sample / 2
            return
        self._variance = 0.75 * self._variance + 0.25 * abs(self._smoothed - sample)
        self._smoothed = 0.875 * self._smoothed + 0.125 * sample


class Pacer:
    """A token bucket that spreads the window over the round trip (RFC 9002 section 7.7)."""

    __slots__ = ("_rate", "_tokens", "_updated_at", "packet_size")

    def __init__(self, packet_size: int) -> None:
        self.packet_size = packet_size
        self._rate = 0.0
        self._tokens = 0.0
        self._updated_at = 0.0

    def refill(self, now: float, rate: float) -> None:
        """Add the tokens that `rate` bytes a second gave since the last call; 0.0: no limit yet."""
        burst = max(float(PACING_BURST_PACKETS * self.packet_size), rate * PACING_BURST_TIME)
        if self._rate == 0.0:
            self._tokens = burst
        else:
            self._tokens = min(burst, self._tokens + (now - self._updated_at) * rate)
        self._rate = rate
        self._updated_at = now

    @property
    def ready_at(self) -> float:
        """When the next packet may go; 0.0 for at once."""
        if self._rate == 0.0 or self._tokens >= self.packet_size - 1.0:
            return 0.0  # one byte of slack: rounding must not ask for a wait of no time
        return self._updated_at + (self.packet_size - self._tokens) / self._rate

    def on_packet_sent(self, size: int) -> None:
        self._tokens -= size
