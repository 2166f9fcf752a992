"""The UDP socket of an instance: opened, bound, and its buffers as large as the kernel allows.

Also knows how the kernel writes an address. Sends and receives nothing. Used by `transport/`,
and by tools that look for free ports.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import sys
import weakref
from dataclasses import dataclass

from comfy_cluster.errors import ConfigError

Address = tuple[str, int]

# Bytes asked for. At 10 Gbit/s and 10 ms RTT 12.5 MB are in flight; see CAPACITY_SHARE.
WANTED_RECEIVE_BUFFER = 64 << 20
WANTED_SEND_BUFFER = 8 << 20  # bytes; bursts wait here for the network card, and no longer
# The kernel charges a packet its "truesize": 2.3 KB for 1.2 KB of payload, 16.6 KB for 8.9 KB. A
# quarter leaves room for that and for the messages and SACKs of the other peers.
CAPACITY_SHARE = 4
LOOPBACK_PACKET_SIZE = 8952  # bytes of UDP payload: 9,000 less the IPv6 and UDP headers

# Linux's <asm-generic/socket.h> and <linux/in.h>, <linux/in6.h>; Python does not name them.
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_PROBE = 3
# The same for Windows' <ws2ipdef.h>, and macOS' <netinet/in.h> and <netinet6/in6.h>.
_WINDOWS_IP_DONTFRAGMENT = 14
_MACOS_IP_DONTFRAG = 28
_MACOS_IPV6_DONTFRAG = 62


@dataclass(frozen=True, slots=True)
class BufferSizes:
    """What the kernel granted, in bytes of its own accounting."""

    receive: int
    send: int

    @property
    def receive_capacity(self) -> int:
        """Bytes of packets that the receive buffer surely holds: what peers may have in flight."""
        return self.receive // CAPACITY_SHARE


def open_udp_socket(address: str, port: int) -> socket.socket:
    """A bound, non-blocking UDP socket that does not fragment. ConfigError: it cannot be bound.

    `::` serves IPv4 peers too. A child of a fork does not keep it: it would keep the port.
    """
    family = family_of(address)
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        raise _bind_error(address, port, error) from error
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        _forbid_fragments(sock)
        sock.setblocking(False)
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise _bind_error(address, port, error) from error
    _open_sockets.add(sock)
    return sock


def _bind_error(address: str, port: int, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        advice = (
            "another program, or another instance, uses this port: stop it, or set another"
            " COMFY_CLUSTER_DIRECT_LISTEN_PORT (in static mode the port in"
            " COMFY_CLUSTER_UDP_HOSTNAMES)"
        )
    elif error.errno == errno.EADDRNOTAVAIL:
        advice = (
            "the address is none of this machine: set COMFY_CLUSTER_LISTEN_ADDRESS to one of its"
            " own, or to 0.0.0.0 for all of them"
        )
    elif error.errno == errno.EACCES:
        advice = "ports below 1024 need privileges: choose a higher port"
    else:
        advice = "check COMFY_CLUSTER_LISTEN_ADDRESS and COMFY_CLUSTER_DIRECT_LISTEN_PORT"
    return ConfigError(
        f"Failed to bind UDP socket on {show_address((address, port))}: {reason}; {advice}",
        variable="COMFY_CLUSTER_DIRECT_LISTEN_PORT",
        value=str(port),
    )


def grow_buffers(sock: socket.socket) -> BufferSizes:
    """Asks for large socket buffers and returns what was granted."""
    return BufferSizes(
        receive=_grow(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, WANTED_RECEIVE_BUFFER),
        send=_grow(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, WANTED_SEND_BUFFER),
    )


def _grow(sock: socket.socket, force_option: int, option: int, wanted: int) -> int:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # needs CAP_NET_ADMIN; goes past rmem_max, wmem_max
            sock.setsockopt(socket.SOL_SOCKET, force_option, wanted)
            return sock.getsockopt(socket.SOL_SOCKET, option)
    # Linux grants less than asked without a word, the BSDs refuse: ask for less until one fits.
    size = wanted
    while size > sock.getsockopt(socket.SOL_SOCKET, option):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, size)
            break
        size //= 2
    return sock.getsockopt(socket.SOL_SOCKET, option)


def _forbid_fragments(sock: socket.socket) -> None:
    """Sets "don't fragment" and makes the kernel ignore what ICMP says of the path (RFC 8899).

    A forged ICMP packet can then not shrink our packets. Without the option packets are fragmented
    where a path is too narrow, which is slow and not wrong.
    """
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        elif sys.platform == "win32" and sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _WINDOWS_IP_DONTFRAGMENT, 1)
        elif sys.platform == "darwin" and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _MACOS_IPV6_DONTFRAG, 1)
        elif sys.platform == "darwin":
            sock.setsockopt(socket.IPPROTO_IP, _MACOS_IP_DONTFRAG, 1)


def family_of(address: str) -> socket.AddressFamily:
    """The socket family of an IP literal. ValueError: it is none."""
    is_ipv4 = ipaddress.ip_address(address).version == 4
    return socket.AF_INET if is_ipv4 else socket.AF_INET6


def canonical_address(address: Address, family: socket.AddressFamily) -> Address:
    """The form in which the kernel tells this address on a socket of `family`.

    The engine knows peers by it. ConfigError: a socket of that family cannot reach it.
    """
    literal, port = address
    parsed = ipaddress.ip_address(literal.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if parsed.version == 4:
        text = str(parsed)
        return (f"::ffff:{text}" if family == socket.AF_INET6 else text), port
    if family == socket.AF_INET:
        raise ConfigError(
            f"{show_address(address)} is an IPv6 address, and this instance listens on IPv4 only:"
            " set COMFY_CLUSTER_LISTEN_ADDRESS=::",
            variable="COMFY_CLUSTER_LISTEN_ADDRESS",
        )
    if parsed.is_link_local:
        raise ConfigError(
            f"{show_address(address)} is a link-local address, which means another machine on each"
            " interface: use a global or a unique local address (fd00::/8)"
        )
    return socket.inet_ntop(socket.AF_INET6, parsed.packed), port


def show_address(address: Address) -> str:
    """`10.0.0.1:9998` or `[fd00::1]:9998`."""
    literal, port = address
    return f"[{literal}]:{port}" if ":" in literal else f"{literal}:{port}"


_open_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_in_child() -> None:
    for sock in list(_open_sockets):
        sock.close()  # of this process's copy; the parent's stays open


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
