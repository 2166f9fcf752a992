"""What a packet to an address tells; the networks' side of it is in tests/netlab/test_doctor.py."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator

import pytest

from comfy_cluster.transport import reachability
from comfy_cluster.transport.reachability import Reachability, probe, receives_from_this_machine
from comfy_cluster.transport.sockets import open_udp_socket


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    with open_udp_socket("127.0.0.1", 0) as sock:
        yield sock


def test_who_listens_is_silent(bound: socket.socket) -> None:
    assert probe(bound.getsockname(), timeout=0.2) is Reachability.SILENT
    assert bound.recv(100) == b""


def test_a_port_where_nobody_listens_is_closed(bound: socket.socket) -> None:
    address = bound.getsockname()
    bound.close()
    assert probe(address) is Reachability.PORT_CLOSED


def test_a_socket_hears_its_machine_on_any_address(bound: socket.socket) -> None:
    assert receives_from_this_machine(bound)
    with open_udp_socket("0.0.0.0", 0) as everywhere:
        assert receives_from_this_machine(everywhere)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_the_same_with_ipv6() -> None:
    with open_udp_socket("::", 0) as sock:
        address = ("::1", sock.getsockname()[1])
        if probe(address, timeout=0.1) is Reachability.NO_ROUTE:
            pytest.skip("this machine has no IPv6 loopback address")
        assert receives_from_this_machine(sock)
    assert probe(address) is Reachability.PORT_CLOSED


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's error queue")
@pytest.mark.parametrize(
    ("number", "code", "meaning"),
    [
        (errno.EHOSTUNREACH, 1, Reachability.UNREACHABLE),
        (errno.EHOSTUNREACH, 10, Reachability.PROHIBITED),
        (errno.EHOSTUNREACH, 13, Reachability.PROHIBITED),
        (errno.ECONNREFUSED, 3, Reachability.PORT_CLOSED),
        (errno.ENETUNREACH, 0, Reachability.NO_ROUTE),
    ],
)
def test_codes_of_icmp_tell_a_firewall_from_a_machine_that_is_off(
    number: int, code: int, meaning: Reachability
) -> None:
    assert reachability._meaning(number, 2, 3, code) is meaning
