"""Instances on a bridge that find each other by broadcast; root only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.netlab import Host, Lab
from tests.netlab.members import Member

pytestmark = pytest.mark.usefixtures("needs_lab")


def others(count: int, index: int) -> list[int]:
    return [each for each in range(count) if each != index]


def wait_for_all(members: list[Member]) -> None:
    for each in members:
        each.wait_for_peers(*others(len(members), each.index))


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
