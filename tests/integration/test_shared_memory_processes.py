"""Shared memory between processes: a kill leaves nothing, and other network namespaces use UDP."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.netlab.namespaces import add_namespace, new_lab_name, remove_namespace
from benchmarks.netlab.requirements import run_command
from comfy_cluster.transport.shared_memory.availability import why_unavailable
from tests.integration.clusters import free_ports
from tests.integration.test_processes import WorkerProcess

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(why_unavailable()), reason=f"no shared memory: {why_unavailable()}"),
]

PORTS = [19_998, 19_999]  # of namespaces of our own
ADDRESSES = ["10.213.87.1", "10.213.87.2"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_leaves_nothing_behind(victim: int) -> None:
    """Both send and receive all the time: it dies as a sender and as a receiver."""
    before = set(os.listdir("/dev/shm"))
    ports = free_ports(2)
    options: dict[str, Any] = {"mode": "until_lost", "shared_memory": "auto"}
    workers = [
        WorkerProcess("compiled", index=index, ports=ports, shared_bytes=50_000_000, **options)
        for index in range(2)
    ]
    try:
        for worker in workers:
            assert worker.read() == {"state": "running"}
        workers[victim].process.send_signal(signal.SIGKILL)
        told = workers[1 - victim].read()
        assert f"instance {victim}" in told["lost"][str(victim)]
        assert told["segments_left"] == 0
        assert workers[1 - victim].end()[0] == 0
    finally:
        for worker in workers:
            worker.close()
    assert set(os.listdir("/dev/shm")) == before


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two network namespaces that reach each other."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root, and ip")
    lab = new_lab_name()
    names = [f"{lab}-{role}" for role in ("one", "two")]
    try:
        for name in names:
            add_namespace(name)
        one, two = names
        run_command(
            f"ip -n {one} link add e0 type veth peer name e0 netns {two}".split(),
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            run_command(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", "e0"])
            run_command(["ip", "-n", name, "link", "set", "e0", "up"])
        yield names
    finally:
        for name in names:
            remove_namespace(name)


@pytest.mark.parametrize("is_shared", [False, True])
def test_instances_share_memory_within_one_network_namespace_only(
    namespaces: list[str], is_shared: bool
) -> None:
    places = namespaces[:1] * 2 if is_shared else namespaces
    hostnames = ADDRESSES[:1] * 2 if is_shared else ADDRESSES
    options: dict[str, Any] = {
        "ports": PORTS,
        "hostnames": hostnames,
        "mode": "rounds",
        "shared_memory": "auto",
    }
    workers = [
        WorkerProcess(
            "compiled",
            ("ip", "netns", "exec", place),
            index=index,
            rounds=20,
            warm_up=5,
            seed=1,
            **options,
        )
        for index, place in enumerate(places)
    ]
    try:
        shared = [worker.read()["shared_bytes"] for worker in workers]
        assert [worker.end() for worker in workers] == [(0, "")] * 2
    finally:
        for worker in workers:
            worker.close()
    assert [each > 0 for each in shared] == [is_shared] * 2
