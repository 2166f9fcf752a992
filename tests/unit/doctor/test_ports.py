"""Ports, the firewall of this machine, and the kernel's buffers."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.doctor.findings import Layer, State
from comfy_cluster.doctor.firewalls import rule_here, rules_there
from comfy_cluster.doctor.ports import (
    check_broadcast_port,
    check_buffers,
    check_own_firewall,
    check_port,
)
from comfy_cluster.transport.sockets import BufferSizes, open_udp_socket


def config_on(port: int) -> ClusterConfig:
    config = ClusterConfig.static(0, [("127.0.0.1", port), ("127.0.0.1", 1)])
    return dataclasses.replace(config, listen_address="127.0.0.1")


def test_a_port_that_is_free_and_one_that_is_taken() -> None:
    with open_udp_socket("127.0.0.1", 0) as taken:
        config = config_on(taken.getsockname()[1])
        (finding,) = check_port(config)
        assert (finding.layer, finding.state) == (Layer.PORT, State.FAILURE)
        assert "Failed to bind UDP socket" in finding.text
        assert "comfy-cluster status" in finding.advice
        assert "stop ComfyUI" in finding.advice
    assert [each.layer for each in check_port(config)] == [Layer.PORT, Layer.BUFFERS]


def test_a_firewall_that_stops_even_packets_of_this_machine() -> None:
    assert check_own_firewall(9998, is_open=True) == []
    (finding,) = check_own_firewall(9998, is_open=False)
    assert (finding.layer, finding.state) == (Layer.FIREWALL, State.FAILURE)
    assert "9998" in finding.advice


@pytest.mark.parametrize(
    ("receive", "state"), [(64 << 20, State.OK), (425_984, State.WARNING)]
)  # the second: what a Linux machine grants without any setting
def test_tiny_buffers_are_named_with_the_command(receive: int, state: State) -> None:
    finding = check_buffers(BufferSizes(receive=receive, send=1 << 20), platform="linux")
    assert (finding.layer, finding.state) == (Layer.BUFFERS, state)
    assert ("net.core.rmem_max" in finding.advice) is (state is State.WARNING)


def test_buffers_of_another_system_have_another_command() -> None:
    sizes = BufferSizes(receive=1 << 16, send=1 << 16)
    assert "kern.ipc.maxsockbuf" in check_buffers(sizes, platform="darwin").advice
    assert "limit" in check_buffers(sizes, platform="win32").advice


def test_the_broadcast_port_matters_in_broadcast_mode_only() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))  # without SO_REUSEADDR: nobody shares it
        port = taken.getsockname()[1]
        config = ClusterConfig(
            instance_count=2, registration_mode=RegistrationMode.BROADCAST, broadcast_port=port
        )
        (finding,) = check_broadcast_port(config)
        assert finding.state is State.FAILURE
        assert "COMFY_CLUSTER_BROADCAST_PORT" in finding.advice
    assert [each.state for each in check_broadcast_port(config)] == [State.OK]
    assert check_broadcast_port(config_on(2)) == []


@pytest.mark.parametrize(
    ("platform", "present", "text"),
    [
        ("linux", "ufw", "ufw allow 9998/udp"),
        ("linux", "firewall-cmd", "--add-port=9998/udp"),
        ("linux", "iptables", "iptables -I INPUT -p udp --dport 9998"),
        ("linux", "", "nft insert rule inet filter input udp dport 9998 accept"),
        ("win32", "", "New-NetFirewallRule"),
        ("darwin", "", "System Settings"),
    ],
)
def test_the_rule_is_that_of_the_firewall_that_is_here(
    platform: str, present: str, text: str
) -> None:
    def which(name: str) -> str | None:
        return name if name == present else None

    assert text in rule_here(9998, platform=platform, which=which)


def test_the_rule_for_another_machine_is_one_for_each_system() -> None:
    rules = "\n".join(rules_there(9998))
    assert all(name in rules for name in ("ufw", "nft", "Windows", "macOS", "cloud"))
