"""64 instances on this machine: one cluster, a fan-in from all, a broadcast to all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.clusters import free_ports

ROOT = Path(__file__).resolve().parents[2]
INSTANCES, PROCESSES = 64, 8
WAIT = 120.0  # seconds; a bound for a broken build

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, so that torch is imported once"),
]


def test_64_instances_form_a_cluster_and_gather() -> None:
    ports = map(str, free_ports(INSTANCES))
    command = [sys.executable, "-W", "error", "-m", "tests.endurance.many_instances"]
    done = subprocess.run(
        [*command, str(PROCESSES), *ports],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=WAIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    print(done.stdout)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(each for answer in answers for each in answer["instances"]) == [*range(INSTANCES)]
    # Each is connected to each other one once: none was lost on the way there and made anew.
    assert sum(answer["connections_made"] for answer in answers) == INSTANCES * (INSTANCES - 1)
    assert [answer["buffers_failed"] for answer in answers] == [0] * PROCESSES
    assert [answer["threads_left"] for answer in answers] == [0] * PROCESSES
