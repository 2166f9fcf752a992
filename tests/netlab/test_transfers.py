"""Transfers of ours over links that lose, delay and reorder."""

from __future__ import annotations

import pytest

from benchmarks.netlab import Lab, LinkProfile
from tests.netlab.running import result_of

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("needs_lab")]

PORT = 9998


@pytest.mark.parametrize(
    "profile",
    [
        LinkProfile(rate="200mbit", loss=0.03),
        LinkProfile(rate="200mbit", loss=0.03, rtt_ms=10, reorder=0.02, queue="shallow"),
        LinkProfile(rate="200mbit", loss=0.01, mtu=9000, made_by="relay"),
    ],
    ids=["kernel", "relay", "jumbo"],
)
def test_payload_arrives_identical(profile: LinkProfile) -> None:
    with Lab(profile) as lab:
        addresses = [f"{host.address}:{PORT}" for host in lab.hosts]
        sender, receiver = (
            host.python("tests.netlab.instance", str(host.index), "5000000", *addresses)
            for host in lab.hosts
        )
        sent, received = result_of(sender), result_of(receiver)
        counters = lab.counters()
    assert sent["sha256"] == received["sha256"]
    assert counters.lost_packets > 0
    assert counters.super_packets == 0
