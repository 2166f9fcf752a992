"""ClusterInfo."""

from __future__ import annotations

from comfy_cluster.nodes.info import ClusterInfo
from tests.unit.nodes.fakes import FakeWork, execute, make


def test_shows_and_returns_the_same_text() -> None:
    returned = execute(make(ClusterInfo, FakeWork(instance_index=2, instance_count=4)))
    text = "Connected: 4/4 instances"
    assert returned == {"ui": {"text": [text]}, "result": (text, 2, 4)}


def test_runs_in_every_prompt_also_alone() -> None:
    assert ClusterInfo.OUTPUT_NODE is True
    assert ClusterInfo.IS_CHANGED() != ClusterInfo.IS_CHANGED()
