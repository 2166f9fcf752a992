"""The compiled engine's `cdef` helpers, called from a module that is compiled by this test."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from comfy_cluster import _fastpath_py, fastpath

pytest.importorskip("Cython", reason="Cython is not installed: nothing to compile the test with")
pytestmark = pytest.mark.skipif(
    not fastpath.IS_COMPILED, reason="the compiled engine is not there: nothing to call"
)

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("engine_helpers.pyx")
BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
source, target, root = sys.argv[1:]
extension = Extension("engine_helpers", [source])
setup(
    script_args=["-q", "build_ext", "--build-lib", target, "--build-temp", target],
    ext_modules=cythonize(extension, include_path=[root], build_dir=target, quiet=True),
)
"""


@pytest.fixture(scope="module")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    target = tmp_path_factory.mktemp("engine_helpers")
    command = [sys.executable, "-c", BUILD, SOURCE.name, str(target), str(ROOT)]
    done = subprocess.run(command, cwd=SOURCE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = [path for path in target.rglob("engine_helpers*") if path.suffix in (".so", ".pyd")]
    spec = importlib.util.spec_from_file_location("engine_helpers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("counter", [0, 1, 2**32, 2**63 - 1])
def test_header_survives_the_round_trip(helpers: ModuleType, counter: int) -> None:
    assert helpers.header_round_trip(0xC2, 0xDEADBEEF, counter) == (0xC2, 0xDEADBEEF, counter)


def test_bitmap_counts_each_chunk_once(helpers: ModuleType) -> None:
    assert helpers.chunks_added(130, [0, 63, 64, 64, 129, 0, 130, 2**31]) == (4, [0, 63, 64, 129])


@pytest.mark.parametrize(
    "counters", [[0], [3, 1, 2], [63, 64, 65], [5, 10_000, 9_999], list(range(0, 9000, 3))]
)
def test_sack_tells_what_the_twin_tells(helpers: ModuleType, counters: list[int]) -> None:
    twin = _fastpath_py.ReceiveHistory()
    for counter in counters:
        if twin.is_new(counter):
            twin.add(counter)
    assert helpers.sack_of(counters) == (twin.largest, twin.sack_words())
