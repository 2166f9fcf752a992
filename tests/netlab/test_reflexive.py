"""An instance behind a NAT learns the address that the NAT gives its data socket; root only."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.netlab import Host, Lab
from tests.netlab.running import result_of

pytestmark = pytest.mark.usefixtures("needs_lab")

INSIDE = "192.168.77"
INSTANCE_PORT, STUN_PORT = 9998, 3478
MAPPED, MAPPED_LATER = 40_321, 45_678
OTHERS = "50000-50999"
# Every socket but the instance's gets a port of another range: the answer tells whose socket asked.
RULES = """
flush ruleset
table ip nat {{
  chain outwards {{
    type nat hook postrouting priority srcnat
    oifname eth0 ip saddr {inside}.0/24 udp sport {port} masquerade to :{mapped}
    oifname eth0 ip saddr {inside}.0/24 meta l4proto udp masquerade to :{others}
  }}
  chain inwards {{
    type filter hook input priority filter
    iifname eth0 ct state new drop
  }}
}}
"""


@dataclass(frozen=True)
class Behind:
    """A lab in which the first host has no way out but through the second one."""

    instance: Host
    nat: Host
    server: Host

    def build(self) -> None:
        into = ["ip", "link", "add", "inside", "type", "veth", "peer", "name", "inside"]
        self.nat.run([*into, "netns", self.instance.namespace])
        self.instance.run(["ip", "link", "set", "eth0", "down"])
        for host, number in ((self.nat, 1), (self.instance, 2)):
            host.run(["ip", "address", "add", f"{INSIDE}.{number}/24", "dev", "inside"])
            host.run(["ip", "link", "set", "inside", "up"])
        self.instance.run(["ip", "route", "add", "default", "via", f"{INSIDE}.1"])
        self.map_to(MAPPED)
        self.nat.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])

    def map_to(self, port: int) -> None:
        """The outer port of sockets that the NAT does not know yet."""
        text = RULES.format(inside=INSIDE, port=INSTANCE_PORT, mapped=port, others=OTHERS)
        self.nat.run(["nft", "-f", "-"], input=text)

    def forget_soon(self) -> None:
        for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            self.nat.run(["sysctl", "-q", "-w", f"net.netfilter.{name}=1"])

    def start_server(self) -> subprocess.Popen[str]:
        return self.server.python("tests.stun_responder", self.server.address, str(STUN_PORT))

    def start_instance(self) -> subprocess.Popen[str]:
        arguments = [str(INSTANCE_PORT), self.server.address, str(STUN_PORT)]
        return self.instance.python("tests.netlab.reflexive", *arguments)


@pytest.fixture
def behind() -> Iterator[Behind]:
    with Lab(hosts=3) as lab:
        made = Behind(*lab.hosts)
        made.build()
        yield made


def next_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


def test_the_address_found_is_the_nats_and_the_port_that_of_the_data_socket(
    behind: Behind,
) -> None:
    behind.start_server()
    instance = behind.start_instance()
    told = next_line(instance)
    assert told["address"] == [behind.nat.address, MAPPED]
    assert told["candidates"] == [
        ["host", f"{INSIDE}.2", INSTANCE_PORT],
        ["srflx", behind.nat.address, MAPPED],
    ]
    ended = result_of(instance)
    assert ended["failure"] == ""
    assert ended["stats"]["stun_answers"] >= 1
    assert ended["stats"]["stun_packets_ignored"] == 0


def test_a_new_mapping_is_told(behind: Behind) -> None:
    """The NAT forgets the socket between two questions, and gives it another port."""
    behind.forget_soon()
    behind.start_server()
    instance = behind.start_instance()
    assert next_line(instance)["address"] == [behind.nat.address, MAPPED]
    behind.map_to(MAPPED_LATER)
    assert next_line(instance)["address"] == [behind.nat.address, MAPPED_LATER]
    result_of(instance)


def test_a_server_that_comes_late_is_asked_again(behind: Behind) -> None:
    instance = behind.start_instance()
    with pytest.raises(subprocess.TimeoutExpired):
        instance.wait(1.0)
    behind.start_server()
    assert next_line(instance)["address"] == [behind.nat.address, MAPPED]
    result_of(instance)
