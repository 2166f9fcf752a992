"""Links are as they were asked for: whichever way they are made, for TCP and UDP alike."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.netlab import Host, Lab, LinkProfile
from benchmarks.netlab.counters import Counters
from tests.netlab.running import carry, result_of, start_sink, start_source
from tests.netlab.traffic import DATAGRAM_SIZE

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("needs_lab")]

LOSS = 0.05
BURST = 40  # datagrams of one super-packet
ROOMY = 16 << 20  # bytes of queue: nothing here fills it
SIGMAS = 6  # a right lab fails once in 500 million runs


def check_loss(counters: Counters) -> None:
    deviation = math.sqrt(counters.offered_packets * LOSS * (1 - LOSS))
    expected = counters.offered_packets * LOSS
    assert abs(counters.lost_packets - expected) < SIGMAS * deviation, counters
    assert counters.super_packets == 0, counters
    assert counters.offered_bytes <= counters.offered_packets * 1514, counters


@pytest.mark.parametrize(("segments", "size"), [(BURST, DATAGRAM_SIZE), (2, 600), (3, 700)])
def test_lost_udp_packets_are_single_ones(made_by: str, segments: int, size: int) -> None:
    """Also where a super-packet is no larger than a packet may be, or hardly so."""
    profile = LinkProfile(rate="200mbit", loss=LOSS, queue=ROOMY, made_by=made_by)
    with Lab(profile) as lab:
        before = lab.counters()
        result = carry("udp", lab, 100 * segments, segments, size)
        after = lab.counters()
    assert after.overruns == before.overruns and after.queue_drops == 0
    assert after.offered_packets - before.offered_packets == 100 * segments
    assert result["count"] == 100 * segments - after.lost_packets
    assert result["damaged"] == result["inversions"] == 0
    check_loss(after)


def test_lost_tcp_packets_are_single_ones(made_by: str) -> None:
    profile = LinkProfile(rate="200mbit", loss=LOSS, queue=ROOMY, made_by=made_by)
    with Lab(profile) as lab:
        result = carry("tcp", lab, 4_000_000)
        counters = lab.counters()
    assert result["sha256"] == result["sent_sha256"]
    assert counters.offered_packets > 4_000_000 / 1460
    check_loss(counters)


@pytest.mark.parametrize("bottleneck", ["switch", "host"])
def test_rate_is_what_was_asked(made_by: str, bottleneck: str) -> None:
    profile = LinkProfile(rate="20mbit", bottleneck=bottleneck, made_by=made_by)
    with Lab(profile) as lab:
        result = carry("tcp", lab, 2_000_000)
    assert result["sha256"] == result["sent_sha256"]
    assert 0.5 < 8 * result["bytes"] / result["seconds"] / 20e6 < 1.05


def test_full_queue_drops_packets(made_by: str) -> None:
    """A burst of 700 packets meets a queue of 20."""
    profile = LinkProfile(rate="1mbit", queue=30_280, made_by=made_by)
    with Lab(profile) as lab:
        result = carry("udp", lab, 3 * BURST, BURST)
        counters = lab.counters()
    assert counters.queue_drops == 3 * BURST - result["count"]
    assert 15 <= result["count"] <= 45


def test_downlink_is_shared(made_by: str) -> None:
    with Lab(LinkProfile(rate="20mbit", queue=ROOMY, made_by=made_by), hosts=3) as lab:
        sink = start_sink("udp", lab.hosts[2])
        sources = [
            start_source("udp", host, lab.hosts[2].address, 800, BURST) for host in lab.hosts[:2]
        ]
        for source in sources:
            result_of(source)
        result = result_of(sink)
    assert result["count"] == 1600
    assert 0.5 < 8 * result["bytes"] / result["seconds"] / 20e6 < 1.05


def test_broadcast_reaches_all_others(made_by: str) -> None:
    with Lab(LinkProfile(rate="1gbit", made_by=made_by), hosts=4) as lab:
        sinks = [start_sink("udp", host) for host in lab.hosts[1:]]
        result_of(start_source("udp", lab.hosts[0], "10.77.0.255", 5, 1))
        assert [result_of(sink)["count"] for sink in sinks] == [5, 5, 5]


def test_delay_is_at_least_what_was_asked() -> None:
    with Lab(LinkProfile(rtt_ms=30)) as lab:
        trips = echo(lab.hosts[0], lab.hosts[1])
    assert trips["answered"] == trips["sent"] > 0
    assert trips["min_ms"] >= 30


def test_jitter_varies_the_delay_and_keeps_order() -> None:
    with Lab(LinkProfile(rtt_ms=10, jitter_ms=20)) as lab:
        trips = echo(lab.hosts[0], lab.hosts[1])
        result = carry("udp", lab, 500, 5)
    assert trips["min_ms"] >= 10
    assert trips["p95_ms"] - trips["min_ms"] > 2
    assert (result["count"], result["inversions"]) == (500, 0)


def test_packets_are_reordered_when_asked() -> None:
    with Lab(LinkProfile(rate="1gbit", reorder=0.05)) as lab:
        result = carry("udp", lab, 1000, BURST)
        counters = lab.counters()
    assert result["count"] == 1000 and result["damaged"] == 0
    assert 0 < result["inversions"] <= counters.reordered


def test_relay_chooses_the_same_losses_for_the_same_seed() -> None:
    def lost(seed: int) -> int:
        with Lab(LinkProfile(loss=LOSS, made_by="relay", seed=seed)) as lab:
            result = carry("udp", lab, 1000, BURST)
        return int(result["count"])

    assert lost(1) == lost(1)


def test_plain_link_passes_super_packets_whole() -> None:
    with Lab() as lab:
        result = carry("udp", lab, 2000, BURST)
        path = Path("/sys/class/net/eth0/statistics/rx_packets")
        packets = int(lab.hosts[1].run(["cat", str(path)]).stdout)
    assert result["bytes"] == 2000 * DATAGRAM_SIZE
    assert packets < 500


def echo(source: Host, sink: Host) -> dict[str, float]:
    process = source.python("benchmarks.netlab.echo", sink.address, "--seconds", "1")
    trips: dict[str, float] = json.loads(process.communicate(timeout=30)[0])
    return trips
