"""What every test may use or needs: seeded chance, ready settings, a Ctrl+C that works."""

from __future__ import annotations

import random
import signal
import zlib

import pytest

from comfy_cluster.config import ClusterConfig


def pytest_configure() -> None:
    """A shell ignores Ctrl+C in what it starts in the background, and the tests' children would."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Chance that is the same in every run; its seed is in the output of a failed test."""
    seed = zlib.crc32(request.node.nodeid.encode())
    print(f"rng seed: {seed}")
    return random.Random(seed)


@pytest.fixture
def config() -> ClusterConfig:
    """A cluster of one."""
    return ClusterConfig(memory_budget=1 << 28)
