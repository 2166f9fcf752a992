"""The network interfaces of this machine, and the address by which others reach it.

Read anew by each call: cables, VPNs and containers come and go.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

LOOPBACK_BROADCAST = "127.255.255.255"
# Of the administratively scoped addresses (RFC 2365 section 6.1); it never leaves the machine.
LOOPBACK_GROUP = "239.255.99.67"
_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True, order=True)
class Interface:
    """An IPv4 address of an interface that is up and can broadcast."""

    name: str
    address: str
    broadcast: str
    """Where the directed broadcast of its network goes; or a multicast group that stands for it."""

    @property
    def is_multicast(self) -> bool:
        return ipaddress.ip_address(self.broadcast).is_multicast

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


def is_bsd(platform: str) -> bool:
    """Or macOS, whose network is one's."""
    return "bsd" in platform or platform.startswith(("darwin", "dragonfly"))


def loopback_interface(platform: str = sys.platform) -> Interface:
    """How all instances of this machine are reached at once.

    By a broadcast where loopback can: the BSDs' and macOS' lo0 has no IFF_BROADCAST, but multicast.
    """
    has_broadcast = not is_bsd(platform)
    destination = LOOPBACK_BROADCAST if has_broadcast else LOOPBACK_GROUP
    return Interface("loopback", "127.0.0.1", destination)


def broadcast_interfaces() -> list[Interface]:
    """Those whose networks can be broadcast to; loopback is none of them."""
    states = psutil.net_if_stats()
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        if name not in states or not states[name].isup:
            continue
        for each in addresses:
            if each.family == socket.AF_INET and each.address:
                # Not what the system tells: Linux tells the own address where none was set.
                broadcast = _directed_broadcast(each.address, each.netmask)
                if broadcast and not ipaddress.ip_address(each.address).is_loopback:
                    found.append(Interface(name, each.address, broadcast))
    return sorted(found)


def own_addresses() -> set[str]:
    """All IP literals of this machine, loopback included."""
    return {
        each.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family in _IP_FAMILIES
    }


def routed_addresses() -> list[str]:
    """IP literals of the interfaces that are up, IPv4 first: no loopback, no link-local ones."""
    states = psutil.net_if_stats()
    found = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        if name in states and states[name].isup:
            literals = [each.address for each in addresses if each.family in _IP_FAMILIES]
            found += [ipaddress.ip_address(each.partition("%")[0]) for each in literals]
    routed = [each for each in found if not (each.is_loopback or each.is_link_local)]
    return [str(each) for each in sorted(routed, key=lambda each: each.version)]


def address_towards(destinations: Iterable[tuple[str, int]]) -> str | None:
    """The IP literal from which packets to the first of `destinations` that has a route would come.

    Sends nothing.
    """
    for hostname, port in destinations:
        try:
            family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((hostname, port))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return None


def mtu_towards(destination: tuple[str, int]) -> int | None:
    """Bytes of the largest IP packet of the interface that packets to `destination` leave by."""
    source = address_towards([destination])
    states = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        if name in states and any(each.address.partition("%")[0] == source for each in addresses):
            return int(states[name].mtu)
    return None


def _directed_broadcast(address: str, netmask: str | None) -> str:
    """Empty for a network of one or two addresses, such as that of a tunnel."""
    if not netmask:
        return ""
    network = ipaddress.ip_interface(f"{address}/{netmask}").network
    return str(network.broadcast_address) if network.num_addresses > 2 else ""
