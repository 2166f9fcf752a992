"""`comfy-cluster doctor` beside a cluster at work: it looks, and nobody waits for it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.cluster.info import OBSERVED_TEXT
from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.errors import ClusterError
from comfy_cluster.runtime import build_cluster
from comfy_cluster.wire import MessageType
from tests.integration.clusters import READY_TIMEOUT, configs, free_ports

pytestmark = pytest.mark.integration

WAIT = 60.0  # seconds; a bound for a broken build, never waited for in a good one
ORDER = MessageType.RELOAD_NODES  # any that nobody else listens to
ROWS = torch.ones(2, 8)

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__, "comfy_cluster.cluster.cluster"])


def follow(config: ClusterConfig) -> None:
    """Gives its rows to each job that the leader orders, for ever."""
    torch.set_num_threads(1)
    cluster = build_cluster(config)
    orders: queue.Queue[bytes] = queue.Queue()
    cluster.add_message_listener(ORDER, lambda peer, payload: orders.put(payload))
    cluster.start()
    while True:
        job_id, members = json.loads(orders.get())
        cluster.declare_ready()
        with contextlib.suppress(ClusterError), cluster.job(job_id):
            part = cluster.instance_index * ROWS
            cluster.fan_in(CollectiveKey(job_id, "in"), part, sources=members).result(WAIT)


def run_job(leader: Cluster, number: int) -> list[int]:
    """A job of all that are connected; whose rows came back."""
    job_id, peers = f"job-{number}", leader.connected_peers
    members = [0, *peers]
    with leader.job(job_id):
        for peer in peers:
            leader.send_message(peer, ORDER, json.dumps([job_id, members]).encode()).result(WAIT)
        part = leader.fan_in(CollectiveKey(job_id, "in"), 0 * ROWS, sources=members)
        return [int(row[0]) for row in part.result(WAIT)[:: len(ROWS)]]


@contextlib.contextmanager
def running(settings: list[ClusterConfig]) -> Iterator[Cluster]:
    """Instances 0 and 1 of several; the leader is in this process."""
    follower = context.Process(target=follow, args=(settings[1],), daemon=True)
    follower.start()
    try:
        with build_cluster(settings[0]) as leader:
            leader.wait_until_ready(READY_TIMEOUT)
            yield leader
    finally:
        follower.kill()
        follower.join()


@contextlib.contextmanager
def looking(index: int, count: int, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """The doctor, as a process of its own."""
    ours = {
        "INSTANCE_COUNT": str(count),
        "INSTANCE_INDEX": str(index),
        "ROLE": "FOLLOWER",
        "MEMORY_BUDGET": "256MB",
        **settings,
    }
    kept = {n: value for n, value in os.environ.items() if not n.startswith("COMFY_CLUSTER_")}
    doctor = subprocess.Popen(
        [sys.executable, "-m", "comfy_cluster.cli", "doctor", "--json", "--seconds", "4"],
        env=kept | {f"COMFY_CLUSTER_{name}": value for name, value in ours.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield doctor
    finally:
        doctor.kill()
        doctor.communicate()


def report_of(doctor: subprocess.Popen[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(doctor.communicate(timeout=WAIT)[0])
    return report


def test_jobs_neither_include_it_nor_wait_for_it(caplog: pytest.LogCaptureFixture) -> None:
    """Instance 3 does not run: so the doctor looks for as long as it was told to."""
    settings = configs(4, min_instances=2)
    entries = ",".join(f"{name}:{port}" for name, port in settings[0].udp_hostnames)
    with running(settings) as leader, caplog.at_level(logging.INFO):
        assert run_job(leader, 0) == [0, 1]
        beside = number = 0
        with looking(2, 4, REGISTRATION_MODE="static", UDP_HOSTNAMES=entries) as doctor:
            while doctor.poll() is None:
                number += 1
                assert run_job(leader, number) == [0, 1]
                assert leader.info().connected_count == 2
                beside += OBSERVED_TEXT in leader.info().text()
            report = report_of(doctor)
        assert run_job(leader, number + 1) == [0, 1]
        stats = leader.info().stats
    assert beside > 1, "no job was run while it looked"
    assert (stats["connections_made"], stats["observers_connected"]) == (1, 1)
    assert stats["heartbeats_sent"] > 0
    reached = [each["text"] for each in report["findings"] if each["layer"] == "peer"]
    assert len(reached) == 2 and all("UDP passes both ways" in text for text in reached)
    assert report["connected_count"] == 3
    # Nothing is said of it: nobody came, and nobody is gone.
    assert not [each for each in caplog.messages if "instance 2" in each or "All inst" in each]


def test_the_instance_that_runs_is_not_disturbed(caplog: pytest.LogCaptureFixture) -> None:
    (broadcast_port,) = free_ports(1)
    (port,) = free_ports(1)
    settings = [
        dataclasses.replace(
            each,
            registration_mode=RegistrationMode.BROADCAST,
            single_host=True,
            udp_broadcast=True,
            broadcast_port=broadcast_port,
        )
        for each in configs(2)
    ]
    with running(settings) as leader, caplog.at_level(logging.INFO):
        number = 0
        with looking(
            1,
            2,
            REGISTRATION_MODE="broadcast",
            SINGLE_HOST="true",
            BROADCAST_PORT=str(broadcast_port),
            DIRECT_LISTEN_PORT=str(port),
        ) as doctor:
            while doctor.poll() is None:
                number += 1
                assert run_job(leader, number) == [0, 1]
            report = report_of(doctor)
        assert run_job(leader, number + 1) == [0, 1]
        stats = leader.info().stats
    assert (stats["connections_made"], stats["connections_lost"]) == (1, 0)
    assert not [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    (failure,) = [each for each in report["findings"] if each["state"] == "failure"]
    assert "INSTANCE_INDEX=1 belongs to the instance at 127.0.0.1" in failure["text"]
