"""An instance whose Python does not run for a while is not taken for dead."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from comfy_cluster import fastpath
from comfy_cluster.config import ClusterConfig
from comfy_cluster.protocol import PeerConnected, PeerLost
from comfy_cluster.transport.transport import Transport
from tests.integration.clusters import free_ports

DEADLINE = 60.0  # seconds; a bound for a broken build
INSTANCE_TIMEOUT = 2.0  # seconds
BUSY_SECONDS = 5  # more than twice the timeout

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not fastpath.HAS_LOOPS, reason="only the compiled engine's loops run without the GIL"
    ),
]

FOLLOWER = """
import sys
from tests.integration.test_busy_process import run_busy_follower
run_busy_follower([int(port) for port in sys.argv[1:]])
"""


def transport_of(index: int, ports: list[int]) -> Transport:
    config = ClusterConfig.static(index, [("127.0.0.1", port) for port in ports])
    transport = Transport(replace(config, instance_timeout=INSTANCE_TIMEOUT))
    transport.start()
    transport.add_member(1 - index, ("127.0.0.1", ports[1 - index]))
    return transport


def run_busy_follower(ports: list[int]) -> None:
    """Once connected, keep the GIL for BUSY_SECONDS; say when that is over; wait for the end."""
    transport = transport_of(1, ports)
    connected = threading.Event()
    transport.add_peer_listener(
        lambda event: connected.set() if isinstance(event, PeerConnected) else None
    )
    if any(peer.is_connected for peer in transport.peers()):
        connected.set()
    assert connected.wait(DEADLINE)
    ctypes.PyDLL(None).sleep(BUSY_SECONDS)  # PyDLL, unlike CDLL, keeps the GIL
    print("free again", flush=True)
    sys.stdin.read()
    transport.close()


def test_a_process_that_keeps_the_gil_is_not_lost() -> None:
    ports = free_ports(2)
    leader = transport_of(0, ports)
    lost: list[PeerLost] = []
    leader.add_peer_listener(
        lambda event: lost.append(event) if isinstance(event, PeerLost) else None
    )
    command = [sys.executable, "-c", FOLLOWER, *map(str, ports)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as follower:
        try:
            assert follower.stdout is not None
            assert follower.stdout.readline() == "free again\n"
            assert lost == []
            assert [peer.is_connected for peer in leader.peers()] == [True]
        finally:
            follower.kill()
            leader.close()
