""" "Queue Cluster" in tests: a prompt on all instances."""

from __future__ import annotations

from typing import Any

from comfy_cluster.work.host import PromptState
from comfy_cluster.workflows.prompt import Prompt
from tests.unit.work.gates import WAIT
from tests.unit.work.instances import Instances

OUTPUTS = (
    "Save",
    "Circle",
    "ClusterFanIn",
    "ClusterGather",
    "ClusterInfo",
    "ClusterBroadcastTensor",
)


def queue_on_all(joined: Instances, prompt: Prompt) -> str:
    """Presses the button; the id of the leader's prompt, once all have it in their queue."""
    outputs = [each for each, node in prompt.items() if node["class_type"].startswith(OUTPUTS)]
    _, prompt_id, queued = joined.works[0].queue_on_all(prompt, {}, outputs=outputs)
    queued.result(WAIT)
    return prompt_id


def run_on_all(joined: Instances, prompt: Prompt) -> list[dict[str, list[Any]]]:
    """What the output nodes of each instance got."""
    results = joined.results_of(queue_on_all(joined, prompt))
    joined.wait_until_over()
    return [results, *(host.last.saved for host in joined.hosts[1:])]


def failure_on_all(joined: Instances, prompt: Prompt) -> PromptState:
    """How the leader's prompt ended."""
    state = joined.leader.wait_for(queue_on_all(joined, prompt))
    assert state.phase.value == "failed", state
    return state
