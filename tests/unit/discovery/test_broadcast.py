"""Announcements over real sockets of this machine, on a loopback that broadcasts or has a group."""

from __future__ import annotations

import contextlib
import queue
import select
import socket
from collections.abc import Iterator

import pytest

from comfy_cluster.config import ClusterConfig, RegistrationMode, Role
from comfy_cluster.discovery import Address, MemberListener
from comfy_cluster.discovery.broadcast import BroadcastDiscovery, join_group, open_broadcast_socket
from comfy_cluster.discovery.interfaces import LOOPBACK_GROUP, Interface, loopback_interface
from comfy_cluster.errors import ConfigError, DiscoveryError
from tests.integration.clusters import free_ports

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one
COUNT = 4


@pytest.fixture(params=["linux", "darwin"])
def way(request: pytest.FixtureRequest) -> Interface:
    """How a system of that kind would do it, here."""
    return loopback_interface(request.param)


@contextlib.contextmanager
def opened(port: int, way: Interface) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(contextlib.closing(open_broadcast_socket(port, way)))
            for _ in range(COUNT)
        ]


def received(sock: socket.socket) -> list[tuple[bytes, str]]:
    """What comes, and from where; nothing is awaited after the first datagram, as it comes to all
    sockets at once."""
    found = []
    wait = WAIT
    while select.select([sock], [], [], wait)[0]:
        datagram, sender = sock.recvfrom(100)
        found.append((datagram, sender[0]))
        wait = 0.0
    return found


def test_every_socket_hears_each_datagram_once(way: Interface) -> None:
    (port,) = free_ports(1)
    with opened(port, way) as sockets:
        for number, each in enumerate(sockets):
            each.sendto(b"%d" % number, (way.broadcast, port))
            heard = [received(other) for other in sockets]
            assert heard == [[(b"%d" % number, "127.0.0.1")]] * COUNT


def test_the_group_is_of_this_machine() -> None:
    """What is sent to it goes to loopback, and no further."""
    (port,) = free_ports(1)
    with opened(port, loopback_interface("darwin")) as sockets:
        options = [each.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) for each in sockets]
        ways = [
            socket.inet_ntoa(each.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4))
            for each in sockets
        ]
    assert options == [0] * COUNT and ways == ["127.0.0.1"] * COUNT


def test_the_options_of_the_group_have_the_one_size_that_every_system_takes() -> None:
    options: dict[int, object] = {}

    class Recording(socket.socket):
        def setsockopt(self, level: int, name: int, value: object) -> None:  # type: ignore[override]
            options[name] = value

    with Recording(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        join_group(sock, loopback_interface("openbsd7"))
    assert options[socket.IP_MULTICAST_TTL] == b"\0"
    assert options[socket.IP_MULTICAST_LOOP] == b"\1"


def test_instances_of_one_machine_find_each_other(way: Interface) -> None:
    (port,) = free_ports(1)
    found: queue.Queue[tuple[int, int, Address]] = queue.Queue()
    with contextlib.ExitStack() as stack:
        for index in range(COUNT):
            discovery = BroadcastDiscovery(config(index, port), loopback=way)
            stack.callback(discovery.close)
            discovery.start(reporting(index, found), fail)
        met = {found.get(timeout=WAIT) for _ in range(COUNT * (COUNT - 1))}
    assert met == {
        (one, other, ("127.0.0.1", 9000 + other))
        for one in range(COUNT)
        for other in range(COUNT)
        if one != other
    }


def test_who_is_heard_before_the_start_is_reported_when_it_is_heard_again(way: Interface) -> None:
    """Its HELLOs may come as soon as the transport's socket is there."""
    (port,) = free_ports(1)
    found: queue.Queue[tuple[int, int, Address]] = queue.Queue()
    address = ("127.0.0.1", 9002)
    with contextlib.closing(BroadcastDiscovery(config(1, port), loopback=way)) as discovery:
        discovery.on_heard(2, address)
        discovery.start(reporting(1, found), fail)
        discovery.on_heard(2, address)
        assert found.get(timeout=WAIT) == (1, 2, address)


def config(index: int, port: int) -> ClusterConfig:
    return ClusterConfig(
        instance_count=COUNT,
        instance_index=index,
        role=Role.FOLLOWER if index else Role.LEADER,
        registration_mode=RegistrationMode.BROADCAST,
        udp_broadcast=True,
        single_host=True,
        broadcast_port=port,
        direct_listen_port=9000 + index,
    )


def reporting(index: int, found: queue.Queue[tuple[int, int, Address]]) -> MemberListener:
    return lambda peer, address: found.put((index, peer, address))


def fail(error: DiscoveryError) -> None:
    raise error


def test_a_group_that_cannot_be_joined_is_an_error_with_a_way_out() -> None:
    nowhere = Interface("loopback", "192.0.2.1", LOOPBACK_GROUP)
    with pytest.raises(ConfigError) as info:
        open_broadcast_socket(free_ports(1)[0], nowhere)
    assert f"{LOOPBACK_GROUP}, by which instances of this machine find each other" in str(
        info.value
    )
    assert "REGISTRATION_MODE=static" in str(info.value)
