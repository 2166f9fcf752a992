"""Which way a payload for several instances goes: to each directly, or along a chain of them.

The one place where that is decided; pure functions. Used by `Cluster` for its collectives; how a
chain works, and what happens when it breaks, is in `protocol/chains.py`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass

from comfy_cluster.config import ClusterConfig

# Bytes from which a payload goes along a chain. Each hop costs an announcement and its answer, some
# 0.3 ms, in which a 1 Gbit/s link carries 40 KB. On loopback both ways take the same from 0.25 MB
# on, and below that sending to each is sooner and less work (docs/performance.md).
CHAIN_SIZE = 256 << 10
OWN_MACHINE = ""


@dataclass(frozen=True, slots=True)
class Routes:
    """Who is sent a payload by its source itself, and who gets it along a chain, in that order."""

    direct: tuple[int, ...]
    chain: tuple[int, ...] = ()


def plan_routes(
    receivers: Collection[int],
    size: int,
    *,
    source: int,
    machine_of: Callable[[int], str],
    shares_memory: Callable[[int], bool],
) -> Routes:
    """The routes of a payload of `size` bytes from instance `source`.

    Whoever shares memory with the source gets it through that. The others form a chain in instance
    order, from the one after the source on: of several sources each begins elsewhere, and the
    chains of an all-gather are a ring. The instances of one machine are neighbours in it, those of
    the source's own machine its beginning, so that a machine's link carries the payload once.
    """
    ordered = sorted(receivers, key=lambda each: (each < source, each))
    sharing = tuple(each for each in ordered if shares_memory(each))
    others = [each for each in ordered if each not in sharing]
    if size < CHAIN_SIZE or len(others) < 2:
        return Routes(tuple(ordered))
    machines: dict[str, list[int]] = {OWN_MACHINE: []}
    for each in others:
        machines.setdefault(machine_of(each), []).append(each)
    return Routes(sharing, tuple(each for members in machines.values() for each in members))


def machine_at(hostname: str, own_hostname: str) -> str:
    """A name for the machine at an address, as far as addresses tell: its IP literal.

    Loopback addresses, and `own_hostname`, are `OWN_MACHINE`, and so is what is not known yet.
    """
    if not hostname or hostname == own_hostname:
        return OWN_MACHINE
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:  # a name
        return hostname
    return OWN_MACHINE if address.is_loopback else hostname


def own_hostname_of(config: ClusterConfig) -> str:
    """How other instances of this machine are addressed, if the settings tell; else empty."""
    if config.instance_address:
        return config.instance_address
    if config.udp_hostnames:
        return config.udp_hostnames[config.instance_index].hostname
    return ""
