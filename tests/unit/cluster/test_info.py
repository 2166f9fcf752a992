"""The texts that a user is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comfy_cluster.cluster.info import ClusterInfo, PeerSummary
from comfy_cluster.cluster.state import InstanceState
from comfy_cluster.config import ImagePrecision, RegistrationMode, Role
from comfy_cluster.transport.peer_info import PeerInfo


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (403_000_000, "403.0 MB"), (10**13, "10.0 TB")],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    peer = PeerSummary(1, Role.FOLLOWER, "10.0.0.1:9998", True, 0.0125, size, 0, 3)
    assert f"RTT 12.50 ms, sent {text}, received 0 B, resent 3 chunks" in peer.text()


def test_what_is_not_known_is_said() -> None:
    peer = PeerSummary(1, Role.FOLLOWER, "address unknown", False, None, 0, 0, 0)
    assert peer.text().startswith("Instance 1 (FOLLOWER): address unknown, not connected, RTT -,")


def test_a_doctor_in_place_of_an_instance_is_said_and_not_connected() -> None:
    info = PeerInfo(1, ("10.0.0.1", 9998), is_heard=True, is_observer=True, rtt=0.001)
    peer = PeerSummary.of(info, trouble="nothing was heard of it", patience=1.0)
    assert "not connected (only `comfy-cluster doctor` runs there now)" in peer.text()


INFO = ClusterInfo(
    instance_index=0,
    instance_count=2,
    min_instances=1,
    connected_count=1,
    role=Role.LEADER,
    state=InstanceState.IDLE,
    registration_mode=RegistrationMode.STATIC,
    cluster_id="default",
    engine="compiled",
)


def test_rounding_is_said_and_exactness_is_not() -> None:
    rounding = replace(INFO, image_precision=ImagePrecision.UINT8)
    assert "pixels are not exact" in rounding.text()
    assert "exact" not in INFO.text()


def test_counters_of_nothing_are_left_away() -> None:
    info = replace(INFO, stats={"replayed": 0, "malformed": 3})
    assert info.text().splitlines()[-1] == "malformed 3"
    assert "Connected: 1/2 instances (work starts with 1)" in info.text()
