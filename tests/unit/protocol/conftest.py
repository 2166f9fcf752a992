"""The fixture of most scenarios: two endpoints that are connected."""

from __future__ import annotations

import pytest

from tests.unit.protocol.world import World


@pytest.fixture
def world() -> World:
    world = World()
    world.connect()
    return world
