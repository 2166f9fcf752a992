"""Which way a payload for several instances goes."""

from __future__ import annotations

import itertools

import pytest

from comfy_cluster.cluster.routes import (
    CHAIN_SIZE,
    OWN_MACHINE,
    Routes,
    machine_at,
    own_hostname_of,
    plan_routes,
)
from comfy_cluster.config import ClusterConfig


def plan(
    count: int,
    source: int = 0,
    *,
    size: int = CHAIN_SIZE,
    machines: str = "",
    sharing: tuple[int, ...] = (),
) -> Routes:
    """`machines` has a letter for each instance; "-" is the source's own machine."""
    names = machines.replace("-", " ") or "".join(chr(ord("a") + each) for each in range(count))
    return plan_routes(
        [each for each in range(count) if each != source],
        size,
        source=source,
        machine_of=lambda each: names[each].strip(),
        shares_memory=lambda each: each in sharing,
    )


def test_small_payloads_go_directly() -> None:
    assert plan(5, size=CHAIN_SIZE - 1) == Routes((1, 2, 3, 4))
    assert plan(5) == Routes((), (1, 2, 3, 4))


@pytest.mark.parametrize("size", [0, CHAIN_SIZE, 1 << 40])
def test_one_receiver_needs_no_chain(size: int) -> None:
    assert plan(2, size=size) == Routes((1,))


def test_chains_of_several_sources_are_a_ring() -> None:
    assert [plan(4, source).chain for source in range(4)] == [
        (1, 2, 3),
        (2, 3, 0),
        (3, 0, 1),
        (0, 1, 2),
    ]


def test_instances_of_one_machine_are_neighbours() -> None:
    assert plan(6, machines="abcabc").chain == (1, 4, 2, 5, 3)
    assert plan(6, 2, machines="abcabc").chain == (3, 0, 4, 1, 5)


def test_those_on_the_source_s_machine_come_first() -> None:
    assert plan(6, machines="-ab-ab").chain == (3, 1, 4, 2, 5)


@pytest.mark.parametrize("source", range(6))
def test_every_link_carries_a_payload_once_each_way(source: int) -> None:
    machines = "xxyyzz"
    own = machines[source]
    chain = plan(6, source, machines=machines.replace(own, "-")).chain
    way = [machines[each] for each in (source, *chain)]
    leaving = [one for one, other in itertools.pairwise(way) if one != other]
    assert sorted(set(leaving)) == sorted(leaving) and len(leaving) == 2
    assert sorted(chain) == sorted({0, 1, 2, 3, 4, 5} - {source})


def test_who_shares_memory_gets_it_directly() -> None:
    assert plan(5, sharing=(2, 4)) == Routes((2, 4), (1, 3))
    assert plan(5, sharing=(1, 2, 3)) == Routes((1, 2, 3, 4))
    assert plan(5, sharing=(1, 2, 3, 4)) == Routes((1, 2, 3, 4))


@pytest.mark.parametrize(
    ("hostname", "machine"),
    [
        ("127.0.0.1", OWN_MACHINE),
        ("127.1.2.3", OWN_MACHINE),
        ("::1", OWN_MACHINE),
        ("10.0.0.1", OWN_MACHINE),
        ("10.0.0.2", "10.0.0.2"),
        ("pod.internal", "pod.internal"),
        ("", OWN_MACHINE),
    ],
)
def test_machines_are_told_by_addresses(hostname: str, machine: str) -> None:
    assert machine_at(hostname, "10.0.0.1") == machine


def test_the_own_hostname_is_that_of_the_settings() -> None:
    assert own_hostname_of(ClusterConfig()) == ""
    assert own_hostname_of(ClusterConfig(instance_address="10.0.0.7")) == "10.0.0.7"
    static = ClusterConfig.static(1, [("10.0.0.1", 9998), ("10.0.0.2", 9998)])
    assert own_hostname_of(static) == "10.0.0.2"
