"""Fixtures that every test may use: seeded chance and ready settings."""

from __future__ import annotations

import random
import zlib

import pytest

from comfy_cluster.config import ClusterConfig


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
