"""Membership: counting, readiness, and the lines that an operator sees."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from comfy_cluster.cluster.membership import Membership
from comfy_cluster.config import ClusterConfig
from comfy_cluster.protocol.events import PeerConnected, PeerLost, PeerRefused


def membership(count: int, *, min_instances: int = 0) -> Membership:
    addresses = [("127.0.0.1", 9000 + index) for index in range(count)]
    config = ClusterConfig.static(0, addresses)
    return Membership(dataclasses.replace(config, min_instances=min_instances or count))


def connected(peer: int, *, boot_id: int = 1) -> PeerConnected:
    return PeerConnected(peer, boot_id, ("127.0.0.1", 9000 + peer))


def test_counts_this_instance_and_the_connected() -> None:
    members = membership(3)
    assert members.summary() == "Connected: 1/3 instances"
    members.handle_event(connected(1))
    members.handle_event(connected(1, boot_id=2))
    assert members.summary() == "Connected: 2/3 instances"
    members.handle_event(PeerLost(1, "left"))
    members.handle_event(PeerLost(1, "left"))
    assert members.connected_count == 1 and not members.is_connected(1)


def test_ready_once_enough_are_connected_and_for_good() -> None:
    members = membership(4, min_instances=3)
    members.handle_event(connected(1))
    assert not members.ready.done()
    members.handle_event(connected(3))
    assert members.ready.done()
    members.handle_event(PeerLost(3, "left"))
    assert members.ready.result(0) is None


def test_a_cluster_of_one_is_ready(config: ClusterConfig) -> None:
    assert Membership(config).ready.done()


def test_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    members = membership(2)
    with caplog.at_level(logging.INFO):
        members.handle_event(connected(1))
        members.handle_event(PeerLost(1, "silent for 3.0 s"))
        members.handle_event(PeerRefused(1, "it belongs to cluster 'b'"))
    at = "instance 1 (127.0.0.1:9001)"
    assert [each.getMessage() for each in caplog.records] == [
        f"= {at} is connected. Connected: 2/2 instances",
        "All instances registered. Connected: 2/2 instances",
        f"= {at} is gone: silent for 3.0 s. Connected: 1/2 instances",
        f"! {at} is refused: it belongs to cluster 'b'",
    ]


def test_missing_instances_are_named_with_the_reason() -> None:
    members = membership(4)
    members.set_address(2, ("10.0.0.2", 9998))
    members.handle_event(connected(1))
    members.handle_event(PeerRefused(3, "it belongs to cluster 'b'"))
    text = members.missing_text({2: "cannot resolve entry 2"})
    assert text.startswith(
        "Connected: 2/4 instances, 4 are needed; missing: instance 2 (10.0.0.2:9998) "
        "[cannot resolve entry 2], instance 3 [it belongs to cluster 'b']. "
    )
    members.handle_event(connected(3))
    assert "cluster 'b'" not in members.missing_text({})
