"""The addresses at which this instance may be reached, as it publishes them (RFC 8445).

Which they are and which is to be tried first; nothing here asks anybody or remembers anything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfy_cluster.config import ClusterConfig
from comfy_cluster.discovery.base import Address
from comfy_cluster.discovery.interfaces import address_towards, routed_addresses
from comfy_cluster.discovery.own_address import LOOPBACK, WILDCARDS

MOST_CANDIDATES = 8
HOST = "host"
"""An address of one of this machine's interfaces."""
SERVER_REFLEXIVE = "srflx"
"""An address that a server saw a packet of this instance come from."""

# RFC 8445, section 5.1.2: recommended preferences of the types, and the formula.
_TYPE_PREFERENCES = {HOST: 126, SERVER_REFLEXIVE: 100}
_LARGEST_LOCAL_PREFERENCE = 65_535
_COMPONENT_ID = 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of them."""

    type: str
    """HOST or SERVER_REFLEXIVE."""
    address: str
    """IP literal."""
    port: int
    priority: int
    """The highest is tried first."""


def priority_of(candidate_type: str, rank: int) -> int:
    """RFC 8445, section 5.1.2.1; `rank` is 0 for the best of that type."""
    local_preference = _LARGEST_LOCAL_PREFERENCE - rank
    return (_TYPE_PREFERENCES[candidate_type] << 24) + (local_preference << 8) + 256 - _COMPONENT_ID


def own_candidates(
    hosts: Sequence[str], port: int, *, reflexive: Address | None, single_host: bool
) -> list[Candidate]:
    """At most eight, best first; `hosts` are IP literals, best first.

    What nobody else can use is left out, and so is a reflexive address that is a host's own: there
    is no NAT on the way then.
    """
    usable = [
        each for each in dict.fromkeys(hosts) if is_publishable(each, single_host=single_host)
    ]
    found = [(HOST, address, port) for address in usable][:MOST_CANDIDATES]
    if (
        reflexive is not None
        and (HOST, *reflexive) not in found
        and is_publishable(reflexive[0], single_host=single_host)
    ):
        found[MOST_CANDIDATES - 1 :] = [(SERVER_REFLEXIVE, *reflexive)]
    return [
        Candidate(kind, address, its_port, priority_of(kind, rank))
        for rank, (kind, address, its_port) in enumerate(found)
    ]


def is_publishable(address: str, *, single_host: bool) -> bool:
    """Whether peers may be told to send there: else one could have them flood others.

    Loopback only where all instances are on one machine (RFC 8445, sections 5.1.1.1 and 19.5).
    """
    ip = ipaddress.ip_address(address)
    is_broadcast = ip == ipaddress.IPv4Address("255.255.255.255")
    if ip.is_unspecified or ip.is_multicast or ip.is_link_local or is_broadcast:
        return False
    return single_host or not ip.is_loopback


def host_addresses(
    config: ClusterConfig,
    destinations: Sequence[Address],
    *,
    towards: Callable[[Sequence[Address]], str | None] = address_towards,
    routed: Callable[[], Sequence[str]] = routed_addresses,
) -> list[str]:
    """IP literals that peers may find this instance's port at, the best one first.

    The interface that routes to the first of `destinations` is the best one that nobody set.
    """
    given = config.instance_address
    first = [given] if given is not None and _is_literal(given) else []
    if config.listen_address not in WILDCARDS:
        return [*first, config.listen_address]
    if config.single_host:
        return [*first, LOOPBACK]
    serves_ipv6 = config.listen_address == "::"
    best = towards([each for each in destinations if serves_ipv6 or ":" not in each[0]])
    found = [*([best] if best is not None else []), *routed()]
    return first + [each for each in dict.fromkeys(found) if serves_ipv6 or ":" not in each]


def _is_literal(hostname: str) -> bool:
    try:
        ipaddress.ip_address(hostname)
    except ValueError:
        return False
    return True
