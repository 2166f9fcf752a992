"""Fixtures of the whole-core tests."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.engines import COMPILED, PYTHON, is_built, load_engine


@pytest.fixture(params=[COMPILED if is_built(COMPILED) else PYTHON])
def engine(request: pytest.FixtureRequest) -> ModuleType:
    """The faster one. The core is the same above either, and unit/fastpath shows that they do the
    same; `test_chaos.py` has both all the same."""
    return load_engine(request.param)
