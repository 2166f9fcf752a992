"""`comfy-cluster doctor` against each fault that it claims to name, between machines; root only."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.netlab import Host, Lab, LinkProfile
from benchmarks.netlab.lab import ROOT
from comfy_cluster.transport.assembly import POOR_RECEIVE_CAPACITY
from comfy_cluster.transport.sockets import CAPACITY_SHARE, WANTED_RECEIVE_BUFFER
from tests.netlab.firewalls import allow, drop
from tests.netlab.members import PREFIX, TIMES, Member

pytestmark = pytest.mark.usefixtures("needs_lab")

PORT = 9998
LONG = "20"  # seconds; it ends when all is settled
SHORT = "2.5"
TIMEOUT = 90.0  # seconds; a bound for a broken build

Findings = dict[tuple[str, str], dict[str, Any]]


def static(lab: Lab, count: int | None = None) -> dict[str, str]:
    hosts = lab.hosts[:count]
    entries = ",".join(f"{host.address}:{PORT}" for host in hosts)
    return {"REGISTRATION_MODE": "static", "UDP_HOSTNAMES": entries}


def start_others(lab: Lab, **settings: str) -> list[Member]:
    """Instance 0 is left to the doctor."""
    members = [Member(host, host.index, len(lab.hosts), **settings) for host in lab.hosts[1:]]
    for member in members:
        member.wait_for("started")
    return members


def examine(
    host: Host, count: int, *, seconds: str = SHORT, by: Sequence[str] = (), **settings: str
) -> tuple[int, dict[str, Any]]:
    """Exit code and report of the doctor, as instance 0; `by`: a command that starts it."""
    ours = {
        "INSTANCE_COUNT": str(count),
        "INSTANCE_INDEX": "0",
        "ROLE": "LEADER",
        "HEARTBEAT_INTERVAL": TIMES["HEARTBEAT_INTERVAL"],
        **settings,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    program = [sys.executable, "-m", "comfy_cluster.cli", "doctor"]
    command = [*by, *program, "--json", "--seconds", seconds]
    done = host.run(
        command,
        check=False,
        cwd=ROOT,
        timeout=TIMEOUT,
        env=kept | {PREFIX + name: value for name, value in ours.items()},
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def wrong_in(report: dict[str, Any]) -> Findings:
    """What is not well, by subject and layer."""
    wrong = [each for each in report["findings"] if each["state"] != "ok"]
    # What this machine's limits are is not of the lab.
    return {(each["subject"], each["layer"]): each for each in wrong if each["layer"] != "buffers"}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(hosts=3) as made:
        yield made


@pytest.mark.parametrize("mode", ["static", "broadcast"])
def test_all_well(lab: Lab, mode: str) -> None:
    settings = static(lab) if mode == "static" else {"REGISTRATION_MODE": "broadcast"}
    start_others(lab, **settings)
    code, report = examine(lab.hosts[0], 3, seconds=LONG, **settings)
    assert code == 0
    assert wrong_in(report) == {}
    assert (report["connected_count"], report["instance_count"]) == (3, 3)
    told = [each["text"] for each in report["findings"] if each["layer"] == "peer"]
    assert all("UDP passes both ways" in text and "MTU 1,500" in text for text in told)
    assert len(told) == 2


@pytest.mark.parametrize("mode", ["static", "broadcast"])
def test_others_take_it_for_no_member(lab: Lab, mode: str) -> None:
    settings = static(lab) if mode == "static" else {"REGISTRATION_MODE": "broadcast"}
    members = start_others(lab, **settings)
    _, report = examine(lab.hosts[0], 3, seconds=LONG, **settings)
    assert report["connected_count"] == 3
    instance = Member(lab.hosts[0], 0, 3, **settings)  # the one it looked for
    for member in members:
        member.wait_for_peers(0, 3 - member.index)
        told = [(each["event"], each.get("peer")) for each in member.events]
        assert sorted(told[1:]) == [("connected", 0), ("connected", 3 - member.index)]
    instance.wait_for_peers(1, 2)


def test_instance_that_does_not_run(lab: Lab) -> None:
    Member(lab.hosts[1], 1, 3, **static(lab)).wait_for("started")
    code, report = examine(lab.hosts[0], 3, **static(lab))
    assert code == 1
    assert report["connected_count"] == 2
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 2", "process")}
    assert "start ComfyUI there" in wrong["instance 2", "process"]["advice"]


def test_firewall_there_drops_what_comes(lab: Lab) -> None:
    """Its own HELLOs come here, so this is no silence."""
    drop(lab.hosts[1], "input", f"udp dport {PORT}")
    start_others(lab, **static(lab))
    code, report = examine(lab.hosts[0], 3, **static(lab))
    assert code == 1
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 1", "firewall")}
    finding = wrong["instance 1", "firewall"]
    assert "those of this instance do not arrive there" in finding["text"]
    assert f"ufw allow {PORT}/udp" in finding["advice"]


def test_firewall_there_drops_what_goes(lab: Lab) -> None:
    drop(lab.hosts[1], "output", "meta l4proto udp")
    start_others(lab, **static(lab))
    code, report = examine(lab.hosts[0], 3, **static(lab))
    assert code == 1
    assert set(wrong_in(report)) == {("instance 1", "network")}
    assert "nothing comes back" in wrong_in(report)["instance 1", "network"]["text"]


def test_peer_that_has_another_address_for_this_one(lab: Lab) -> None:
    """It drops what strangers send, and says HELLO to somebody else."""
    settings = static(lab)
    others = settings["UDP_HOSTNAMES"].replace(lab.hosts[0].address, "10.77.0.200")
    Member(lab.hosts[1], 1, 3, **settings | {"UDP_HOSTNAMES": others}).wait_for("started")
    Member(lab.hosts[2], 2, 3, **settings).wait_for("started")
    _, report = examine(lab.hosts[0], 3, **settings)
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 1", "network")}
    assert "knows this instance by another address" in wrong["instance 1", "network"]["text"]
    assert "COMFY_CLUSTER_UDP_HOSTNAMES" in wrong["instance 1", "network"]["advice"]


def test_firewall_there_refuses(lab: Lab) -> None:
    verdict = "reject with icmpx type admin-prohibited"
    drop(lab.hosts[1], "input", f"udp dport {PORT}", verdict)
    drop(lab.hosts[1], "output", "meta l4proto udp")
    start_others(lab, **static(lab))
    _, report = examine(lab.hosts[0], 3, **static(lab))
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 1", "firewall")}
    assert "refuses packets" in wrong["instance 1", "firewall"]["text"]


@pytest.mark.parametrize("match", [f"udp dport {PORT}", f'iifname "eth0" udp dport {PORT}'])
def test_firewall_here_drops_what_comes(lab: Lab, match: str) -> None:
    """One that lets through what stays on the machine can only be guessed at."""
    drop(lab.hosts[0], "input", match)
    start_others(lab, **static(lab))
    code, report = examine(lab.hosts[0], 3, **static(lab))
    assert code == 1
    assert report["connected_count"] == 1
    wrong = wrong_in(report)
    peers = {("instance 1", "network"), ("instance 2", "network"), ("this machine", "firewall")}
    is_seen = "iifname" not in match
    assert set(wrong) == peers | ({(f"UDP {PORT}", "firewall")} if is_seen else set())
    assert f"here let UDP {PORT} in: " in wrong["instance 1", "network"]["advice"]


def test_firewall_here_drops_what_goes(lab: Lab) -> None:
    drop(lab.hosts[0], "output", f"ip daddr {lab.hosts[2].address} meta l4proto udp")
    start_others(lab, **static(lab))
    code, report = examine(lab.hosts[0], 3, **static(lab))
    assert code == 1
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 2", "firewall")}
    assert "a firewall of this machine" in wrong["instance 2", "firewall"]["text"]


def test_broadcasts_that_are_dropped(lab: Lab) -> None:
    for host in lab.hosts[:2]:
        drop(host, "output", "udp dport 9997")
    start_others(lab, REGISTRATION_MODE="broadcast")
    _, report = examine(lab.hosts[0], 3, REGISTRATION_MODE="broadcast")
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 1", "discovery")}
    assert "no announcement of it came" in wrong["instance 1", "discovery"]["text"]
    allow(lab.hosts[0], "output")
    _, report = examine(lab.hosts[0], 3, seconds=LONG, REGISTRATION_MODE="broadcast")
    assert wrong_in(report) == {}, "it hears this instance, and says HELLO"


def test_direct_packets_that_are_dropped_in_broadcast_mode(lab: Lab) -> None:
    drop(lab.hosts[1], "input", f"udp dport {PORT}")
    drop(lab.hosts[1], "output", f"udp dport {PORT}")
    start_others(lab, REGISTRATION_MODE="broadcast")
    _, report = examine(lab.hosts[0], 3, REGISTRATION_MODE="broadcast")
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 1", "firewall")}
    assert "its announcements arrive" in wrong["instance 1", "firewall"]["text"]


def test_wrong_count(lab: Lab) -> None:
    start_others(lab, **static(lab))
    code, report = examine(lab.hosts[0], 2, **static(lab, 2))
    assert code == 1
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 1", "handshake")}
    assert "counts 3 instances, this instance 2" in wrong["instance 1", "handshake"]["text"]


def test_wrong_key_in_broadcast_mode(lab: Lab) -> None:
    start_others(lab, REGISTRATION_MODE="broadcast", KEY="k" * 32)
    _, report = examine(lab.hosts[0], 3, REGISTRATION_MODE="broadcast", KEY="x" * 32)
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 1", "discovery"), ("instance 2", "discovery")}
    assert "COMFY_CLUSTER_KEY is another one" in wrong["instance 1", "discovery"]["text"]


def test_index_that_another_instance_has(lab: Lab) -> None:
    leader = Member(lab.hosts[1], 0, 3)
    follower = Member(lab.hosts[2], 1, 3)
    leader.wait_for_peers(1)
    follower.wait_for_peers(0)
    code, report = examine(lab.hosts[0], 3, seconds=LONG, REGISTRATION_MODE="broadcast")
    assert code == 1
    wrong = wrong_in(report)
    assert set(wrong) == {("this instance", "discovery")}
    assert "INSTANCE_INDEX=0 belongs to" in wrong["this instance", "discovery"]["text"]
    for member in (leader, follower):
        assert [each["event"] for each in member.events] == ["started", "connected"]


def test_port_taken_by_the_instance_itself(lab: Lab) -> None:
    start_others(lab, **static(lab))
    Member(lab.hosts[0], 0, 3, **static(lab)).wait_for_peers(1, 2)
    code, report = examine(lab.hosts[0], 3, **static(lab))
    assert code == 1
    assert report["connected_count"] is None
    assert set(wrong_in(report)) == {(f"UDP 0.0.0.0:{PORT}", "port")}


def test_buffers_of_somebody_who_is_not_root(lab: Lab) -> None:
    """Root goes past the system's limit; others get twice of it, which is tiny by default."""
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv (util-linux)")
    granted = 2 * min(int(Path("/proc/sys/net/core/rmem_max").read_text()), WANTED_RECEIVE_BUFFER)
    start_others(lab, **static(lab))
    by = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    code, report = examine(lab.hosts[0], 3, seconds=LONG, by=by, **static(lab))
    assert (code, report["connected_count"]) == (0, 3)
    (finding,) = [each for each in report["findings"] if each["layer"] == "buffers"]
    assert f"{granted >> 10} KiB to receive" in finding["text"]
    is_tiny = granted // CAPACITY_SHARE < POOR_RECEIVE_CAPACITY
    assert ("sysctl -w net.core.rmem_max" in finding["advice"]) is is_tiny


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_mtu_black_hole(mtu: int) -> None:
    with Lab(LinkProfile(mtu=mtu), hosts=2) as lab:
        drop(lab.hosts[1], "input", "meta l4proto udp meta length > 1300")
        start_others(lab, **static(lab))
        code, report = examine(lab.hosts[0], 2, seconds="6", **static(lab))
    assert code == 0, "the cluster works, with small packets"
    assert report["connected_count"] == 2
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 1", "mtu")}
    finding = wrong["instance 1", "mtu"]
    assert "black hole" in finding["text"] and f"MTU {mtu:,}" in finding["text"]
    assert f"ping -M do -s {mtu - 28} {lab.hosts[1].address}" in finding["advice"]


def test_link_without_a_route(lab: Lab) -> None:
    lab.hosts[0].run(["ip", "route", "del", "10.77.0.0/24"])
    _, report = examine(lab.hosts[0], 3, **static(lab))
    wrong = wrong_in(report)
    assert {("instance 1", "network"), ("instance 2", "network")} == set(wrong)
    assert "no route" in wrong["instance 1", "network"]["text"]


def test_machine_that_is_off(lab: Lab) -> None:
    """The lab's neighbours are fixed; one that has to be asked for does not answer."""
    host = lab.hosts[0]
    host.run(["ip", "neighbour", "del", lab.hosts[2].address, "dev", "eth0"])
    lab.hosts[2].run(["ip", "link", "set", "eth0", "down"])
    Member(lab.hosts[1], 1, 3, **static(lab)).wait_for("started")
    _, report = examine(host, 3, **static(lab))
    wrong = wrong_in(report)
    assert set(wrong) == {("instance 2", "network")}
    assert "no machine answers" in wrong["instance 2", "network"]["text"]
