"""The nodes that free memory."""

from __future__ import annotations

import pytest

from comfy_cluster.nodes.memory import ClusterFinallyFree, ClusterFreeNow, MemoryNode
from tests.unit.nodes.fakes import FakeWork, execute, make

CASES = [(ClusterFreeNow, "now"), (ClusterFinallyFree, "when done")]


@pytest.mark.parametrize(("node_class", "when"), CASES)
def test_frees_what_is_asked_and_passes_its_input_on(
    node_class: type[MemoryNode], when: str
) -> None:
    work, trigger = FakeWork(), object()
    node = make(node_class, work)
    assert execute(node, trigger=trigger) == (trigger,)
    execute(node, trigger=trigger, unload_models=False, free_memory=True)
    assert work.host.freed == [(when, True, True), (when, False, True)]


@pytest.mark.parametrize(("node_class", "when"), CASES)
def test_runs_in_every_prompt_also_without_readers(node_class: type[MemoryNode], when: str) -> None:
    assert node_class.OUTPUT_NODE is True
    assert node_class.IS_CHANGED(trigger=None) != node_class.IS_CHANGED(trigger=None)
