"""Fixtures that every test may use: the packet engines, seeded chance, ready settings."""

from __future__ import annotations

import importlib
import random
import zlib
from collections.abc import Callable
from types import ModuleType

import pytest

from comfy_cluster.config import ClusterConfig, EngineChoice, engine_choice

LOOPBACK = "127.0.0.1"


@pytest.fixture(params=["_fastpath_py", "_fastpath"], ids=["python", "compiled"])
def engine(request: pytest.FixtureRequest) -> ModuleType:
    """Each packet engine in turn: a test of the engine's contract runs on both."""
    return load_engine(request.param)


def load_engine(name: str) -> ModuleType:
    """The module of one engine; a missing compiled one skips the test where that is allowed."""
    try:
        return importlib.import_module(f"comfy_cluster.{name}")
    except ImportError as error:
        if name == "_fastpath" and engine_choice() is not EngineChoice.REQUIRE_COMPILED:
            pytest.skip(f"the compiled engine was not built: {error}")
        raise


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
