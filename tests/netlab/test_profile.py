"""Profiles, cases and the command line: what needs no root."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from benchmarks.netlab import LinkProfile
from benchmarks.netlab.cases import CASES
from benchmarks.netlab.lab import ROOT
from benchmarks.netlab.profile import parse_rate


@pytest.mark.parametrize(
    ("text", "expected"), [("1gbit", 1e9), ("2.5gbit", 2.5e9), ("100Mbit", 1e8), ("64kbit", 64e3)]
)
def test_rates(text: str, expected: float) -> None:
    assert parse_rate(text) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rate": "fast"}, "rate 'fast': expected a number and kbit"),
        ({"rate": "0gbit"}, "rate '0gbit'"),
        ({"loss": 1.0}, "loss 1.0: expected a share"),
        ({"rtt_ms": -1}, "rtt_ms -1: expected 0 to 10000"),
        ({"mtu": 100}, "mtu 100"),
        ({"queue": "long"}, "queue 'long': expected one of shallow, medium, deep, or bytes"),
        ({"bottleneck": "moon"}, "bottleneck 'moon'"),
        ({"rtt_ms": 5, "made_by": "kernel"}, "made_by 'kernel': expected one of auto, relay"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        LinkProfile(**values)


def test_queues_are_of_the_links_size() -> None:
    sizes = [LinkProfile(rate="1gbit", queue=name).queue_size for name in ("medium", "deep", 10**6)]
    assert sizes == [2_500_000, 31_250_000, 1_000_000]
    shallow = LinkProfile(rate="10mbit", queue="shallow")
    assert shallow.queue_size == 20 * shallow.frame_size


def test_every_case_is_listed() -> None:
    command = [sys.executable, "-m", "benchmarks.netlab", "--list"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(CASES)


def test_bad_link_is_refused_with_a_text() -> None:
    command = [sys.executable, "-m", "benchmarks.netlab", "--rate", "fast"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 or "needs" in done.stderr
    assert "expected a number" in done.stderr or "needs" in done.stderr
