"""What is known of the way to some peers: which codecs they know, how fast the link is.

Used by `Payloads`, through `Cluster`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass, replace

from comfy_cluster.cluster.membership import Membership
from comfy_cluster.cluster.ports import Transport
from comfy_cluster.cluster.routes import Routes, machine_at, own_hostname_of, plan_routes
from comfy_cluster.codec.image_codecs import UNANNOUNCED_CODECS
from comfy_cluster.config import ClusterConfig

# Bytes a second, until the first transfers have shown what a path carries: 1 Gbit/s, the most
# common link between machines.
ASSUMED_RATE = 117e6


@dataclass(frozen=True, slots=True)
class Link:
    """The way of one payload to all its receivers."""

    codecs: frozenset[str]
    """What all of them can decode."""
    takes_parts: bool
    rate: float
    """Bytes a second."""
    shares_memory: bool = False
    """All of them get it through shared memory."""
    is_local: bool = False
    """All of them are on this machine, reached over loopback or through shared memory."""

    def shared_by(self, count: int) -> Link:
        """The same way for one of `count` payloads that go out at once."""
        return replace(self, rate=self.rate / count)


class Ways:
    """Which ways payloads of this instance go, and what is known of those."""

    def __init__(self, config: ClusterConfig, membership: Membership, transport: Transport) -> None:
        self._own_index = config.instance_index
        self._own_hostname = own_hostname_of(config)
        self._membership = membership
        self._transport = transport

    def plan(self, receivers: Collection[int], size: int) -> Routes:
        """Which way a payload goes to several others."""
        return plan_routes(
            receivers,
            size,
            source=self._own_index,
            machine_of=self._machine_of,
            shares_memory=self._transport.shares_memory,
        )

    def link_to(self, peers: Collection[int], size: int) -> Link:
        """What is known of the way of a payload to some peers."""
        return link_to(
            peers,
            membership=self._membership,
            transport=self._transport,
            is_relayed=bool(self.plan(peers, size).chain),
        )

    def _machine_of(self, peer: int) -> str:
        return machine_at(self._membership.hostname_of(peer), self._own_hostname)


def link_to(
    peers: Collection[int], *, membership: Membership, transport: Transport, is_relayed: bool
) -> Link:
    """`is_relayed`: the peers send it on to each other, so that it leaves here once.

    Else they share what this instance's link carries.
    """
    announced = [frozenset(membership.codecs_of(peer)) for peer in peers]
    over_udp = [peer for peer in peers if not transport.shares_memory(peer)]
    rates = [transport.bandwidth_to(peer) or ASSUMED_RATE for peer in over_udp]
    rate = min(rates, default=ASSUMED_RATE)
    return Link(
        codecs=frozenset.intersection(*(each or UNANNOUNCED_CODECS for each in announced)),
        takes_parts=all(announced),
        rate=rate if is_relayed or not rates else rate / len(rates),
        shares_memory=not over_udp,
        is_local=all(_is_loopback(membership.hostname_of(peer)) for peer in over_udp),
    )


def _is_loopback(hostname: str) -> bool:
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:  # a name, or not known yet
        return False
