"""Instances on a bridge that find each other by broadcast; root only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from benchmarks.netlab import Host, Lab
from tests.netlab.firewalls import allow, drop
from tests.netlab.members import DEFAULT_TIMES, Member, wait_for_all

pytestmark = pytest.mark.usefixtures("needs_lab")


@pytest.fixture
def three() -> Iterator[Lab]:
    with Lab(hosts=3) as lab:
        yield lab


def set_link(host: Host, state: str) -> None:
    host.run(["ip", "link", "set", "eth0", state])


def test_eight_instances_find_each_other() -> None:
    with Lab(hosts=8) as lab:
        assert "default" not in lab.hosts[0].run(["ip", "route"]).stdout
        members = [Member(host, host.index, 8) for host in lab.hosts]
        wait_for_all(members)
        assert members[0].connected == {each.index: each.address for each in lab.hosts[1:]}


def test_clusters_side_by_side_do_not_mix() -> None:
    with Lab(hosts=6) as lab:
        clusters = [
            [Member(host, host.index // 2, 3, CLUSTER_ID=name) for host in lab.hosts[first::2]]
            for first, name in enumerate(("red", "blue"))
        ]
        for members in clusters:
            wait_for_all(members)
        for first, members in enumerate(clusters):
            addresses = {host.address for host in lab.hosts[first::2]}
            for member in members:
                assert set(member.connected.values()) < addresses
                assert not any(each["event"] == "refused" for each in member.events)


def test_an_interface_that_comes_up_late(three: Lab) -> None:
    set_link(three.hosts[2], "down")
    members = [Member(host, host.index, 3) for host in three.hosts]
    members[0].wait_for_peers(1)
    members[2].wait_for("started")
    set_link(three.hosts[2], "up")
    wait_for_all(members)


def test_a_partition_heals(three: Lab) -> None:
    """30 seconds of it, in which packets vanish without a word: for instances with the times that
    users have, and beside them on the same machines for a cluster that is quicker."""
    slow = [Member(host, host.index, 3, **DEFAULT_TIMES) for host in three.hosts]
    quick = [
        Member(host, host.index, 3, CLUSTER_ID="quick", DIRECT_LISTEN_PORT="9990")
        for host in three.hosts
    ]
    for members in (slow, quick):
        wait_for_all(members)
    began = time.monotonic()
    with cut_off(three, 1):
        for members in (quick, slow):
            members[0].wait_for_peers(2)
            members[1].wait_for_peers()
            members[2].wait_for_peers(0)
        noticed = time.monotonic() - began
        time.sleep(PARTITION - noticed)  # nothing is to happen
        for members in (quick, slow):
            assert [set(each.connected) for each in members] == [{2}, set(), {0}]
    for members in (quick, slow):
        wait_for_all(members)
        for index, apart in ((0, [1]), (1, [0, 2]), (2, [1])):
            lost = [each["peer"] for each in members[index].events if each["event"] == "lost"]
            assert sorted(lost) == apart, "each was lost once, and nobody else was"
    assert noticed < NOTICED and time.monotonic() - began < PARTITION + HEALED


PARTITION = 30.0  # seconds
NOTICED = 10.0  # the default of INSTANCE_TIMEOUT is 3; the rest is for a busy machine
HEALED = 10.0  # HELLOs go once a second


@contextlib.contextmanager
def cut_off(lab: Lab, index: int) -> Iterator[None]:
    """One host from all others: what it sends vanishes, and so does what it is sent."""
    host, others = lab.hosts[index], [each for each in lab.hosts if each.index != index]
    for each in others:
        drop(each, "input", f"ip saddr {host.address}")
    drop(host, "input", 'iifname "eth0"')
    yield
    for each in lab.hosts:
        allow(each, "input")


def test_a_cable_that_is_pulled_and_put_back(three: Lab) -> None:
    members = [Member(host, host.index, 3) for host in three.hosts]
    wait_for_all(members)
    set_link(three.hosts[1], "down")
    members[0].wait_for_peers(2)
    members[1].wait_for_peers()
    set_link(three.hosts[1], "up")
    wait_for_all(members)


def test_an_address_that_changes(three: Lab) -> None:
    members = [Member(host, host.index, 3) for host in three.hosts]
    wait_for_all(members)
    host = three.hosts[1]
    host.run(["ip", "address", "flush", "dev", "eth0"])
    host.run(["ip", "address", "add", "10.77.0.99/24", "broadcast", "+", "dev", "eth0"])
    members[0].wait_for("lost", peer=1)
    wait_for_all(members)
    assert members[0].connected[1] == "10.77.0.99"


def test_a_restarted_instance_is_found_again(three: Lab) -> None:
    members = [Member(host, host.index, 3) for host in three.hosts]
    wait_for_all(members)
    members[2].process.kill()
    members[2].process.wait()
    members[0].wait_for_peers(1)
    members[2] = Member(three.hosts[2], 2, 3)
    wait_for_all(members)


def test_of_two_with_one_index_the_later_one_stops(three: Lab) -> None:
    first = [Member(host, host.index, 2) for host in three.hosts[:2]]
    wait_for_all(first)
    late = Member(three.hosts[2], 1, 2)
    reason = late.wait_for("failed")["reason"]
    assert "INSTANCE_INDEX=1 belongs to the instance at 10.77.0.2:9998" in reason
    wait_for_all(first)
    assert all(each["event"] in ("started", "connected") for each in first[1].events)
