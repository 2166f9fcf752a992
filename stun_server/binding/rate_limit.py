"""How often a network may ask: a token bucket for each IPv4 /24 and IPv6 /56, in bounded memory.

Pure: the time is an argument. Not thread-safe; the responder's thread owns it.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

_IPV6_PREFIX_SIZE = 7  # bytes: /56, what one customer of a provider gets (RFC 6177)


class RateLimit:
    """`rate` packets per second for each network, and `burst` at once after silence.

    Remembers the `most_networks` that were heard last. One that is forgotten begins anew with a
    full bucket: many networks at once are not limited, but cost no more memory either.
    """

    def __init__(self, rate: float, burst: float, *, most_networks: int) -> None:
        self._rate = rate
        self._burst = burst
        self._most_networks = most_networks
        # By network: tokens left, and when that was. The one heard last is last.
        self._buckets: OrderedDict[str | bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Networks that are remembered."""
        return len(self._buckets)

    def takes(self, address: str, now: float) -> bool:
        """Takes a packet's token from the bucket of its network; False: there is none left.

        `address` is an IP literal as a socket gives it; `now` is monotonic seconds.
        """
        network = network_of(address)
        tokens, at = self._buckets.pop(network, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - at) * self._rate)
        is_taken = tokens >= 1
        self._buckets[network] = (tokens - is_taken, now)
        if len(self._buckets) > self._most_networks:
            self._buckets.popitem(last=False)
        return is_taken


def network_of(address: str) -> str | bytes:
    """What an IP literal has in common with its network: text of an IPv4 /24, bytes of a /56."""
    if ":" not in address:
        return address.rpartition(".")[0]
    ip = ipaddress.IPv6Address(address)
    if ip.ipv4_mapped is not None:
        return network_of(str(ip.ipv4_mapped))
    return ip.packed[:_IPV6_PREFIX_SIZE]
