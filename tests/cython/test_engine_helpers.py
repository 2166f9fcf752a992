"""The compiled engine's C functions, called from C: a small Cython module is built for this test.

It uses them as any Cython module may, through `_fastpath.pxd`.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests import packets
from tests.engines import COMPILED, REQUIRE_VARIABLE, load_engine

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("engine_helpers.pyx")
BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup

extension = Extension("engine_helpers", ["engine_helpers.pyx"])
modules = cythonize([extension], include_path=[sys.argv[1]], quiet=True)
setup(name="helpers", ext_modules=modules, script_args=["-q", "build_ext", "--inplace"])
"""


@pytest.fixture(scope="module")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    load_engine(COMPILED)
    folder = tmp_path_factory.mktemp("cython")
    shutil.copy(SOURCE, folder)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(ROOT)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    built = [path for path in folder.glob("engine_helpers.*") if path.suffix in (".so", ".pyd")]
    if done.returncode or not built:
        text = f"the Cython module was not built:\n{done.stdout}{done.stderr}"
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(text)
        pytest.skip(text)
    spec = importlib.util.spec_from_file_location("engine_helpers", built[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_header_is_packed_and_parsed(helpers: ModuleType) -> None:
    rng = random.Random(1)
    for kind in (0xC0, 0xC1, 0xC2, 0xC3, 0xC4):
        session, counter = rng.getrandbits(32), rng.getrandbits(63)
        data = helpers.pack_header(kind, session, counter)
        assert data == packets.packet(kind, session, counter)
        assert helpers.parse_header(data) == (kind, session, counter)
        for size in range(16):
            assert helpers.parse_header(data[:size]) is None


@pytest.mark.parametrize("place", [1, 2, 3, 8])
def test_header_with_a_bit_of_another_version_is_refused(helpers: ModuleType, place: int) -> None:
    data = bytearray(packets.message(7, 8, b""))
    data[place] |= 0x80
    assert helpers.parse_header(bytes(data)) is None


def test_sack_of_every_wrong_length_is_refused(helpers: ModuleType) -> None:
    received = {0, 5, 63, 64, 200}
    payload = packets.sack_payload(received)
    assert helpers.repack_sack(payload) == payload
    assert helpers.parse_sack(payload)[0] == 200
    for size in range(len(payload)):
        assert helpers.parse_sack(payload[:size]) is None
    assert helpers.parse_sack(payload + b"\0") is None


def test_largest_sack_is_repacked(helpers: ModuleType) -> None:
    payload = packets.sack_payload({0, *range(1, 8192, 7), 8191})
    assert len(payload) == 20 + 8 * 128
    assert helpers.repack_sack(payload) == payload


def test_sack_with_any_bytes_is_parsed_or_refused(helpers: ModuleType) -> None:
    rng = random.Random(2)
    engine = load_engine(COMPILED)
    for _ in range(5000):
        payload = bytearray(packets.sack_payload({rng.randrange(300), rng.randrange(300)}))
        payload[rng.randrange(len(payload))] = rng.randrange(256)
        cut = bytes(payload[: rng.choice([len(payload), rng.randrange(len(payload))])])
        assert helpers.parse_sack(cut) == engine.parse_sack(cut)


@pytest.mark.parametrize("chunk_count", [0, 1, 63, 64, 65, 1000])
def test_bitmap_at_its_edges(helpers: ModuleType, chunk_count: int) -> None:
    indices = [0, chunk_count - 1, chunk_count, chunk_count + 1, 0, 2**32 - 1, chunk_count // 2]
    indices = [index for index in indices if index >= 0]
    seen: set[int] = set()
    expected = []
    for index in indices:
        expected.append(index < chunk_count and index not in seen)
        if index < chunk_count:
            seen.add(index)
    assert helpers.add_to_bitmap(chunk_count, indices) == (expected, len(seen), sorted(seen))


@pytest.mark.parametrize("seed", range(5))
def test_history_as_the_python_class_has_it(helpers: ModuleType, seed: int) -> None:
    rng = random.Random(seed)
    counters = [int(20_000 * rng.random() ** rng.choice([0.2, 1, 3])) for _ in range(3000)]
    history = load_engine("python").ReceiveHistory()
    expected = []
    for counter in counters:
        expected.append(history.is_new(counter))
        if expected[-1]:
            history.add(counter)
    words, last = history.sack_words(), history.largest // 64
    first = 64 * (last - len(words) + 1)
    reported = [first + 64 * n + i for n, w in enumerate(words) for i in range(64) if w >> i & 1]
    assert helpers.play_history(counters) == (expected, reported)
