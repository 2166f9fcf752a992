"""Which addresses an instance publishes, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery.candidates import (
    Candidate,
    host_addresses,
    is_publishable,
    own_candidates,
    priority_of,
)

PORT = 9998
REFLEXIVE = ("198.51.100.7", 40_000)


def published(
    *hosts: str, reflexive: tuple[str, int] | None = None, single_host: bool = False
) -> list[Candidate]:
    return own_candidates(hosts, PORT, reflexive=reflexive, single_host=single_host)


def config(**settings: Any) -> ClusterConfig:
    broadcast = RegistrationMode.BROADCAST
    return ClusterConfig(instance_count=2, registration_mode=broadcast, **settings)


def hosts_of(
    config: ClusterConfig, *routed: str, best: str | None = None, server: str = "203.0.113.5"
) -> list[str]:
    def towards(destinations: object) -> str | None:
        return best if destinations else None

    return host_addresses(config, [(server, 3478)], towards=towards, routed=lambda: routed)


# Priorities


def test_priorities_are_those_of_rfc_8445() -> None:
    assert priority_of("host", 0) == 2130706431  # section 5.1.2.2's numbers, as every library has
    assert priority_of("srflx", 0) == 1694498815
    ranked = [priority_of(kind, rank) for kind in ("host", "srflx") for rank in range(8)]
    assert ranked == sorted(set(ranked), reverse=True)
    assert all(0 < each < 2**31 for each in ranked)


def test_interfaces_come_first_and_the_reflexive_address_last() -> None:
    assert published("10.0.0.2", "2001:db8::2", reflexive=REFLEXIVE) == [
        Candidate("host", "10.0.0.2", PORT, 2130706431),
        Candidate("host", "2001:db8::2", PORT, 2130706431 - 256),
        Candidate("srflx", *REFLEXIVE, 1694498815 - 512),
    ]


# What is published


def test_without_a_nat_there_is_one_candidate() -> None:
    assert len(published("198.51.100.7", reflexive=("198.51.100.7", PORT))) == 1
    moved = published("198.51.100.7", reflexive=("198.51.100.7", PORT + 1))
    assert [each.type for each in moved] == ["host", "srflx"]


def test_eight_at_most_and_the_reflexive_one_among_them() -> None:
    hosts = [f"10.0.0.{number}" for number in range(1, 21)]
    assert [each.address for each in published(*hosts)] == hosts[:8]
    with_reflexive = published(*hosts, reflexive=REFLEXIVE)
    assert [each.address for each in with_reflexive] == [*hosts[:7], REFLEXIVE[0]]
    assert published(*hosts[:3], *hosts[:3]) == published(*hosts[:3])


NOWHERE = ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "169.254.1.1", "fe80::1", "255.255.255.255"]


@pytest.mark.parametrize("address", NOWHERE)
@pytest.mark.parametrize("single_host", [False, True])
def test_what_is_no_address_of_one_machine_is_not_published(
    address: str, single_host: bool
) -> None:
    assert not is_publishable(address, single_host=single_host)
    assert published(address, reflexive=(address, 5), single_host=single_host) == []


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_is_published_where_all_are_on_one_machine(address: str) -> None:
    assert published(address, reflexive=(address, PORT)) == []
    assert [each.address for each in published(address, single_host=True)] == [address]


def test_what_is_not_published_takes_no_place() -> None:
    hosts = [*NOWHERE, "127.0.0.1", *(f"10.0.0.{number}" for number in range(1, 8))]
    assert len(published(*hosts, reflexive=REFLEXIVE)) == 8


# Addresses of interfaces


def test_the_interface_towards_the_server_comes_first() -> None:
    assert hosts_of(config(), "172.17.0.1", "10.0.0.2", best="10.0.0.2") == [
        "10.0.0.2",
        "172.17.0.1",
    ]
    assert hosts_of(config(), "172.17.0.1", "10.0.0.2") == ["172.17.0.1", "10.0.0.2"]


def test_ipv6_needs_a_socket_that_serves_it() -> None:
    addresses = ("10.0.0.2", "2001:db8::2")
    assert hosts_of(config(), *addresses) == ["10.0.0.2"]
    assert hosts_of(config(), *addresses, best="2001:db8::2", server="2001:db8::1") == ["10.0.0.2"]
    both = config(listen_address="::")
    assert hosts_of(both, *addresses, best="2001:db8::2", server="2001:db8::1") == [
        "2001:db8::2",
        "10.0.0.2",
    ]


def test_one_address_that_is_listened_at_is_the_only_one() -> None:
    assert hosts_of(config(listen_address="10.0.0.3"), "10.0.0.2", best="10.0.0.2") == ["10.0.0.3"]


def test_on_a_single_host_it_is_loopback() -> None:
    assert hosts_of(config(single_host=True), "10.0.0.2", best="10.0.0.2") == ["127.0.0.1"]


def test_an_address_that_was_set_comes_before_all_and_a_name_is_none() -> None:
    given = config(instance_address="203.0.113.9")
    assert hosts_of(given, "10.0.0.2") == ["203.0.113.9", "10.0.0.2"]
    assert hosts_of(config(instance_address="gpu-1.example"), "10.0.0.2") == ["10.0.0.2"]
