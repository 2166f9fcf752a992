"""What one link of the lab is like. Values only; `wiring.py` turns them into devices and queues."""

from __future__ import annotations

import re
from dataclasses import dataclass

ETHERNET_HEADER = 14  # bytes; tbf counts it, as it does not count preamble and checksum
MIN_BURST_PACKETS = 4
QUEUE_SECONDS = {"shallow": 1e-3, "medium": 20e-3, "deep": 250e-3}
LARGEST_QUEUE = 64 << 20  # bytes; a deep queue at 10 Gbit/s would be 300 MB of kernel memory
SMALLEST_QUEUE_PACKETS = 20
UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
MAKERS = ("auto", "kernel", "relay")
BOTTLENECKS = ("switch", "host")


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """Every host's link to the switch, both directions alike. ValueError for what cannot be.

    With `LinkProfile()` the hosts are joined by plain veth pairs, offloads and all.
    """

    mtu: int = 1500
    """Bytes of an IP packet."""
    rate: str | None = None
    """`100mbit`, `1gbit`, `2.5gbit`: bits of Ethernet frames a second; None: no limit."""
    loss: float = 0.0
    """Share of the packets that are dropped on the way from one host to another, at random."""
    rtt_ms: float = 0.0
    """Delay there and back, in milliseconds, beside what the queues add."""
    queue: str | int = "medium"
    """Before the rate limit: `shallow` 1 ms, `medium` 20 ms, `deep` 250 ms of the link's rate, or
    bytes."""
    burst_ms: float = 2.0
    """What a link that was idle sends at once, in milliseconds of its rate. A machine that is busy
    for longer than that at a time loses rate."""
    jitter_ms: float = 0.0
    """Each way, the delay is up to this much longer; it changes every few ms, and keeps order."""
    reorder: float = 0.0
    """Share of the packets that others overtake."""
    reorder_ms: float = 2.0
    """How much later those arrive."""
    bottleneck: str = "switch"
    """Where a host's sending is limited: `switch`, by a queue in the network that drops; `host`, by
    its own network card, whose queue makes the sender wait."""
    made_by: str = "auto"
    """`kernel`: tbf and nft; `relay`: a process of the lab's own; `auto`: the relay if there is
    delay, jitter or reordering, which the kernel cannot make."""
    seed: int = 1
    """Of the relay's chance; the kernel's random losses take none."""

    def __post_init__(self) -> None:
        _check("mtu", self.mtu, 576 <= self.mtu <= 9216, "576 to 9216 bytes")
        _check("loss", self.loss, 0 <= self.loss < 1, "a share from 0 to less than 1")
        _check("reorder", self.reorder, 0 <= self.reorder < 1, "a share from 0 to less than 1")
        for name in ("rtt_ms", "burst_ms", "jitter_ms", "reorder_ms"):
            value = getattr(self, name)
            _check(name, value, 0 <= value <= 10_000, "0 to 10000 milliseconds")
        expected = f"one of {', '.join(BOTTLENECKS)}"
        _check("bottleneck", self.bottleneck, self.bottleneck in BOTTLENECKS, expected)
        makers = [name for name in MAKERS if name != "kernel" or not self.needs_relay]
        _check("made_by", self.made_by, self.made_by in makers, f"one of {', '.join(makers)} here")
        known = isinstance(self.queue, int) or self.queue in QUEUE_SECONDS
        _check("queue", self.queue, known, f"one of {', '.join(QUEUE_SECONDS)}, or bytes")
        if self.rate is not None:
            parse_rate(self.rate)

    @property
    def bits_per_second(self) -> float | None:
        return None if self.rate is None else parse_rate(self.rate)

    @property
    def needs_relay(self) -> bool:
        """The kernel's means have no delay, jitter or reordering."""
        return bool(self.rtt_ms or self.jitter_ms or self.reorder)

    @property
    def is_relayed(self) -> bool:
        return self.needs_relay or self.made_by == "relay"

    @property
    def relay_rate(self) -> float:
        """Bits a second that the relay lets pass; 0: no limit, or the hosts limit themselves."""
        return 0.0 if self.bottleneck == "host" else self.bits_per_second or 0.0

    @property
    def is_plain(self) -> bool:
        """Nothing shapes the link: super-packets of 64 KB may cross it whole."""
        return self.rate is None and not self.loss and not self.is_relayed

    @property
    def frame_size(self) -> int:
        """Bytes of the largest Ethernet frame."""
        return self.mtu + ETHERNET_HEADER

    @property
    def burst(self) -> int:
        """Bytes that the token bucket lets pass at once."""
        at_rate = int((self.bits_per_second or 0) / 8 * self.burst_ms / 1e3)
        return max(at_rate, MIN_BURST_PACKETS * self.frame_size)

    @property
    def queue_size(self) -> int:
        """Bytes that wait before the rate limit at most."""
        if isinstance(self.queue, int):
            return max(self.queue, self.burst)
        at_rate = int((self.bits_per_second or 0) / 8 * QUEUE_SECONDS[self.queue])
        smallest = max(SMALLEST_QUEUE_PACKETS * self.frame_size, self.burst)
        return min(max(at_rate, smallest), LARGEST_QUEUE)


def parse_rate(text: str) -> float:
    """Bits per second of `1gbit`, `100mbit`, `2.5gbit`. ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", text.lower())
    if match is None or not float(match[1]):
        raise ValueError(f"rate {text!r}: expected a number and kbit, mbit or gbit, as in 100mbit")
    return float(match[1]) * UNITS[match[2]]


def _check(name: str, value: object, is_good: bool, expected: str) -> None:
    if not is_good:
        raise ValueError(f"{name} {value!r}: expected {expected}")
