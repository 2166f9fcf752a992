"""Fixtures: clusters of real ComfyUI processes. Starting one takes seconds for each process.

So one cluster of four serves nearly all tests; each test finds it whole and idle. Without a ComfyUI
every test that asks for one is skipped, and says what was looked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comfyui.instances import ComfyCluster, ComfyInstance
from tests.comfyui.photographs import write_photographs
from tests.comfyui.place import ComfyPlace, ComfyUnavailable, find_comfyui

pytest.register_assert_rewrite("tests.comfyui.comparing")

PHOTOGRAPH_COUNT = 40
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def comfyui() -> ComfyPlace:
    try:
        return find_comfyui()
    except ComfyUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def four(comfyui: ComfyPlace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyCluster]:
    """For `cluster`, and for what must outlive a test."""
    folder = tmp_path_factory.mktemp("four")
    with ComfyCluster(4, folder=folder) as cluster:
        add_photographs(cluster.leader)
        yield cluster


@pytest.fixture
def cluster(four: ComfyCluster) -> Iterator[ComfyCluster]:
    """Four connected instances that are idle, with photographs at the leader only."""
    yield four
    four.recover()


@pytest.fixture
def unique() -> str:
    """A name that no other test uses, for gates, counts and files."""
    return f"test-{next(_numbers)}"


def add_photographs(instance: ComfyInstance) -> None:
    folder: Path = instance.folder / "input" / "photographs"
    write_photographs(folder, PHOTOGRAPH_COUNT, height=72, width=96)
