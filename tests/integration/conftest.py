"""Fixtures of the transport's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from comfy_cluster.config import SharedMemory
from comfy_cluster.transport.shared_memory.availability import why_unavailable
from tests.engines import engine

__all__ = ["engine"]


@pytest.fixture(params=["udp", "shared memory"])
def carrier(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Settings with which payloads travel over UDP, or through shared memory."""
    if request.param == "udp":
        yield {"shared_memory": SharedMemory.OFF}
        return
    if why_unavailable():
        pytest.skip(f"no shared memory: {why_unavailable()}")
    yield {"shared_memory": SharedMemory.AUTO}
