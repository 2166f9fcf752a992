"""The `engine` fixture: every contract test runs on the pure-Python engine and on the compiled one.

Imports either engine directly, so that one run covers both. Conftest files import the fixture.
"""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from types import ModuleType

import pytest

REQUIRE_VARIABLE = "COMFY_CLUSTER_REQUIRE_FASTPATH"
PYTHON = "python"
COMPILED = "compiled"
_MODULES = {PYTHON: "comfy_cluster._fastpath_py", COMPILED: "comfy_cluster._fastpath"}


def is_built(name: str) -> bool:
    """True also where it must be: who loads it then is told that it is not."""
    return bool(find_spec(_MODULES[name])) or os.environ.get(REQUIRE_VARIABLE) == "1"


def load_engine(name: str) -> ModuleType:
    """Return an engine module; skip the test where it is not built, fail where it must be."""
    try:
        return importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        if name != COMPILED or error.name != _MODULES[COMPILED]:
            raise
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"the compiled engine is not built, and {REQUIRE_VARIABLE}=1 requires it")
        pytest.skip("the compiled engine is not built; build it with: pip install -e .")


@pytest.fixture(params=[PYTHON, COMPILED])
def engine(request: pytest.FixtureRequest) -> ModuleType:
    """One engine module, each in turn."""
    return load_engine(request.param)


@pytest.fixture
def both_engines() -> tuple[ModuleType, ModuleType]:
    """The pure-Python engine and the compiled one, for tests that compare them."""
    return load_engine(PYTHON), load_engine(COMPILED)
