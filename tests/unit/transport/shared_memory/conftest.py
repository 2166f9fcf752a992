"""Fixtures of shared memory's tests: Linux only."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from comfy_cluster.transport.shared_memory.availability import why_unavailable


@pytest.fixture(autouse=True)
def _needs_shared_memory() -> None:
    if why_unavailable():
        pytest.skip(f"no shared memory: {why_unavailable()}")


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before
