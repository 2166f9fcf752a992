"""The kept inputs run through their targets; where atheris is there, new ones are looked for."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fuzz.fuzz_decode import TARGETS
from tests.fuzz.guarded import fill_new_memory
from tests.fuzz.make_seeds import CORPUS, SEEDS, name_of
from tests.layering import ROOT

LARGEST_CORPUS = 300 << 10  # bytes
SECONDS = float(os.environ.get("CLUSTER_FUZZ_SECONDS", "5"))  # for each target
START_SECONDS = 60  # to load torch on a busy machine
CORPUS_SECONDS = 30  # to run the corpus of one there
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


@pytest.fixture(autouse=True)
def ordinary_memory() -> Iterator[None]:
    """For the tests that come after these."""
    yield
    fill_new_memory(None)


def kept(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@pytest.mark.parametrize("target", TARGETS)
def test_every_kept_input_is_decoded_or_refused(target: str) -> None:
    """On a thread, like all codec work: elsewhere numcodecs uses threads of its own."""
    inputs = kept(target)
    with ThreadPoolExecutor(1) as pool:
        accepted = list(pool.map(TARGETS[target], inputs))
    assert True in accepted and False in accepted


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_is_accepted(target: str) -> None:
    """Else the fuzzer begins outside of what it should test."""
    assert all(TARGETS[target](seed) for seed in SEEDS[target]())


def test_the_corpus_is_small_and_named_by_content() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert all(path.name == name_of(path.read_bytes()) for path in files)
    assert sum(path.stat().st_size for path in files) < LARGEST_CORPUS


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Where each target has its folder, and how it ended."""
    folder = tmp_path_factory.mktemp("fuzzed")
    for target in TARGETS:
        shutil.copytree(CORPUS / target, folder / target / "corpus")
    command = [
        *(sys.executable, "-m", "tests.fuzz.run_all", str(folder)),
        *("-seed=1", f"-max_total_time={max(1, round(SECONDS))}", "-timeout=10"),
        *("-rss_limit_mb=4096", "-max_len=6000", "-keep_seed=1", "-verbosity=0"),
    ]
    timeout = START_SECONDS + len(TARGETS) * (SECONDS + CORPUS_SECONDS)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder, json.loads(done.stdout)


@pytest.mark.skipif(not HAS_ATHERIS, reason="atheris is not installed (the extra `fuzz`)")
@pytest.mark.parametrize("target", TARGETS)
def test_fuzzing_finds_nothing(target: str, fuzzed: tuple[Path, dict[str, int]]) -> None:
    folder, codes = fuzzed
    log = (folder / target / "log").read_text(errors="replace")
    found = [path.read_bytes() for path in (folder / target).glob("found-*")]
    inputs = "\n".join(f"input, base64: {base64.b64encode(data).decode()}" for data in found)
    assert codes[target] == 0 and not found, f"{inputs}\n{log[-6000:]}"
