"""Fixtures that every test may use: seeded chance and ready settings."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import pytest

from comfy_cluster.config import ClusterConfig

LOOPBACK = "127.0.0.1"


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


@pytest.fixture
def make_config() -> Callable[..., ClusterConfig]:
    """`make_config(index, ports)`: an instance of a static cluster on this machine."""

    def make(instance_index: int, ports: list[int]) -> ClusterConfig:
        return ClusterConfig.static(instance_index, [(LOOPBACK, port) for port in ports])

    return make
