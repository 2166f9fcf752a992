"""The UDP socket: bound or a clear error, large buffers, addresses as the kernel tells them."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from comfy_cluster.errors import ConfigError
from comfy_cluster.fastpath import MIN_PACKET_SIZE
from comfy_cluster.transport import sockets

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 on this machine")


def test_socket_is_bound_and_does_not_block() -> None:
    with sockets.open_udp_socket("127.0.0.1", 0) as sock:
        address, port = sock.getsockname()
        assert address == "127.0.0.1" and port > 0
        with pytest.raises(BlockingIOError):
            sock.recv(1)


def test_port_in_use_is_told_with_address_reason_and_advice() -> None:
    with sockets.open_udp_socket("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            sockets.open_udp_socket("127.0.0.1", port)
    text = str(caught.value)
    assert text.startswith(f"Failed to bind UDP socket on 127.0.0.1:{port}: ")
    assert os.strerror(98 if sys.platform == "linux" else 48) in text
    assert "COMFY_CLUSTER_DIRECT_LISTEN_PORT" in text


def test_address_of_another_machine_is_told() -> None:
    with pytest.raises(ConfigError, match=r"^Failed to bind UDP socket on 203\.0\.113\.9:9998: "):
        sockets.open_udp_socket("203.0.113.9", 9998)


@needs_ipv6
def test_socket_on_all_ipv6_addresses_hears_ipv4_too() -> None:
    with (
        sockets.open_udp_socket("::", 0) as sock,
        sockets.open_udp_socket("127.0.0.1", 0) as sender,
    ):
        sender.sendto(b"x", ("127.0.0.1", sock.getsockname()[1]))
        sock.settimeout(10)
        _, address = sock.recvfrom(10)
        expected = sockets.canonical_address(sender.getsockname(), socket.AF_INET6)
        assert address[:2] == expected


def test_buffers_grow_to_what_the_kernel_grants() -> None:
    with sockets.open_udp_socket("127.0.0.1", 0) as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        sizes = sockets.grow_buffers(sock)
        assert sizes.receive == sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= before
        assert sizes.send == sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@pytest.mark.parametrize("packet_size", [MIN_PACKET_SIZE, sockets.LOOPBACK_PACKET_SIZE])
def test_receive_capacity_fits_the_buffer(packet_size: int) -> None:
    """As many packets as peers may have in flight stay in the socket until they are read."""
    with (
        sockets.open_udp_socket("127.0.0.1", 0) as receiver,
        sockets.open_udp_socket("127.0.0.1", 0) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        granted = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        count = sockets.BufferSizes(granted, 0).receive_capacity // packet_size
        sender.setblocking(True)
        for _ in range(count):
            sender.sendto(bytes(packet_size), receiver.getsockname())
        assert [len(receiver.recv(1 << 16)) for _ in range(count)] == [packet_size] * count


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's socket options")
def test_packets_are_not_fragmented() -> None:
    with sockets.open_udp_socket("127.0.0.1", 0) as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, 10) == 3  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE


@pytest.mark.parametrize(
    ("literal", "family", "expected"),
    [
        ("10.0.0.1", socket.AF_INET, "10.0.0.1"),
        ("::ffff:10.0.0.1", socket.AF_INET, "10.0.0.1"),
        ("10.0.0.1", socket.AF_INET6, "::ffff:10.0.0.1"),
        ("::FFFF:10.0.0.1", socket.AF_INET6, "::ffff:10.0.0.1"),
        ("FD00:0:0::2", socket.AF_INET6, "fd00::2"),
    ],
)
def test_canonical_address(literal: str, family: socket.AddressFamily, expected: str) -> None:
    assert sockets.canonical_address((literal, 9998), family) == (expected, 9998)


@pytest.mark.parametrize(
    ("literal", "family", "text"),
    [
        ("fd00::2", socket.AF_INET, r"\[fd00::2\]:9998 is an IPv6 address.*LISTEN_ADDRESS=::"),
        ("fe80::2", socket.AF_INET6, "link-local"),
        ("fe80::2%eth0", socket.AF_INET6, "link-local"),
    ],
)
def test_address_out_of_reach(literal: str, family: socket.AddressFamily, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        sockets.canonical_address((literal, 9998), family)


def test_show_address() -> None:
    assert sockets.show_address(("10.0.0.1", 1)) == "10.0.0.1:1"
    assert sockets.show_address(("fd00::1", 1)) == "[fd00::1]:1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_child_of_a_fork_does_not_keep_the_port() -> None:
    with sockets.open_udp_socket("127.0.0.1", 0) as sock:
        child = os.fork()
        if child == 0:
            os._exit(0 if sock.fileno() == -1 else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert sock.getsockname()[1] > 0
