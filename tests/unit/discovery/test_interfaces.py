"""Which interfaces are broadcast to, and where; the address towards others."""

from __future__ import annotations

import ipaddress
import socket
from types import SimpleNamespace

import psutil
import pytest

from comfy_cluster.config import ClusterConfig
from comfy_cluster.discovery import interfaces
from comfy_cluster.discovery.interfaces import (
    LOOPBACK_GROUP,
    Interface,
    address_towards,
    broadcast_interfaces,
    loopback_interface,
    mtu_towards,
    routed_addresses,
)
from comfy_cluster.discovery.own_address import own_hostname


def snicaddr(address: str, netmask: str | None, broadcast: str | None = None) -> object:
    return SimpleNamespace(
        family=socket.AF_INET, address=address, netmask=netmask, broadcast=broadcast
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """Its interfaces, all of them up but `down`."""
    addresses: dict[str, list[object]] = {}
    states = {name: SimpleNamespace(isup=name != "down") for name in ("lo", "a", "b", "down")}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    return addresses


def test_addresses_that_others_can_reach(machine: dict[str, list[object]]) -> None:
    machine["lo"] = [snicaddr("127.0.0.1", "255.0.0.0"), inet6("::1")]
    machine["b"] = [snicaddr("10.0.0.2", "255.255.255.0"), inet6("fe80::1%b")]
    machine["a"] = [inet6("2001:db8::2"), snicaddr("172.17.0.1", None), link_layer()]
    machine["down"] = [snicaddr("10.9.9.9", None)]
    assert routed_addresses() == ["172.17.0.1", "10.0.0.2", "2001:db8::2"]


def inet6(address: str) -> object:
    return SimpleNamespace(family=socket.AF_INET6, address=address, netmask=None, broadcast=None)


def link_layer() -> object:
    family = psutil.AF_LINK
    return SimpleNamespace(family=family, address="00:00:00:00:00:00", netmask=None, broadcast=None)


def test_networks_are_broadcast_to_and_tunnels_and_loopback_are_not(
    machine: dict[str, list[object]],
) -> None:
    machine["lo"] = [snicaddr("127.0.0.1", "255.0.0.0")]
    # Linux tells an address of its own where no broadcast address was set.
    machine["a"] = [
        snicaddr("10.0.0.5", "255.255.255.0", "10.0.0.5"),
        snicaddr("10.1.2.3", "255.255.0.0", None),
    ]
    machine["b"] = [
        snicaddr("10.9.0.1", "255.255.255.255"),
        snicaddr("10.9.0.2", "255.255.255.254"),
        snicaddr("10.9.0.3", None),
    ]
    machine["down"] = [snicaddr("10.7.0.1", "255.255.255.0")]
    machine["gone"] = [snicaddr("10.8.0.1", "255.255.255.0")]
    assert broadcast_interfaces() == [
        Interface("a", "10.0.0.5", "10.0.0.255"),
        Interface("a", "10.1.2.3", "10.1.255.255"),
    ]


@pytest.mark.parametrize(
    ("platform", "destination"),
    [
        ("linux", "127.255.255.255"),
        ("win32", "127.255.255.255"),
        ("darwin", LOOPBACK_GROUP),
        ("freebsd14", LOOPBACK_GROUP),
        ("openbsd7", LOOPBACK_GROUP),
        ("dragonfly6", LOOPBACK_GROUP),
    ],
)
def test_loopback_is_broadcast_to_where_it_can_be(platform: str, destination: str) -> None:
    chosen = loopback_interface(platform)
    assert (chosen.address, chosen.broadcast) == ("127.0.0.1", destination)
    assert chosen.is_multicast is (destination == LOOPBACK_GROUP)
    # Of the scope that an organisation divides by itself: RFC 2365 section 6.1.
    assert ipaddress.ip_address(LOOPBACK_GROUP) in ipaddress.ip_network("239.255.0.0/16")


def test_the_address_towards_loopback_is_loopback() -> None:
    assert address_towards([("127.0.0.1", 9)]) == "127.0.0.1"
    assert address_towards([("nowhere.invalid", 9), ("127.0.0.2", 9)]) == "127.0.0.1"
    assert address_towards([]) is None
    assert "127.0.0.1" in interfaces.own_addresses()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"instance_address": "pod.example", "single_host": True}, "pod.example"),
        ({"single_host": True, "runpod_pod_id": "x7"}, "127.0.0.1"),
        ({"runpod_pod_id": "x7"}, "x7.runpod.internal"),
        ({"listen_address": "10.9.9.9", "single_host": True}, "10.9.9.9"),
        ({}, "towards 10.0.0.1"),
    ],
)
def test_the_own_address(settings: dict[str, object], expected: str) -> None:
    config = ClusterConfig(**settings)  # type: ignore[arg-type]
    found = own_hostname(
        config, [("10.0.0.1", 9)], towards=lambda places: f"towards {places[0][0]}"
    )
    assert found == expected


def test_the_mtu_is_that_of_the_interface_that_leads_there() -> None:
    loopback = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(each.address == "127.0.0.1" for each in addresses)
    )
    assert mtu_towards(("127.0.0.1", 9)) == psutil.net_if_stats()[loopback].mtu


def test_a_socket_without_ipv6_is_reached_without(machine: dict[str, list[object]]) -> None:
    machine["a"] = [snicaddr("10.0.0.5", "255.255.255.0")]
    server = [("::1", 8089)]
    assert own_hostname(ClusterConfig(), server) == "10.0.0.5"
    assert own_hostname(ClusterConfig(listen_address="::"), server) == "::1"
