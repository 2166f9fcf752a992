"""Workflow files that a node runs on every instance (ClusterExecuteWorkflow).

How it works. Followers get the file's prompt as an order. The leader cannot queue it and wait: its
queue is busy with the prompt that the node is in. So the node expands to the file's nodes, under
ids with a prefix, and to one node more that comes after all of them and has the results.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from comfy_cluster.errors import WorkflowError
from comfy_cluster.work.host import Phase, PromptState
from comfy_cluster.work.run import Expansion, NodeCall, Run, wait
from comfy_cluster.workflows.files import file_prompt, with_inputs
from comfy_cluster.workflows.prompt import Prompt, name_of
from comfy_cluster.workflows.rewrite import RECEIVED, comes_after, with_outputs_only, with_prefix
from comfy_cluster.workflows.subgraphs import expand_all

if TYPE_CHECKING:
    from comfy_cluster.work.work import Work
    from comfy_cluster.work.workflow_run import WorkflowRun

NODE = "ClusterExecuteWorkflow"
_RESULTS = "results"


@dataclass(frozen=True, slots=True)
class _FileRun:
    """One file that runs in a prompt."""

    prompt_id: str
    workflow_path: str
    prefix: str
    prompt: Prompt
    run: WorkflowRun | None
    """None: there are no followers."""


class FileRuns:
    """The files that run in prompts of this instance. Used on ComfyUI's threads."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._runs: list[_FileRun] = []
        self._numbers = itertools.count(1)

    def run_of(self, call: NodeCall) -> tuple[Run, NodeCall] | None:
        """The run of a node that came from a file, and its call without the prefix."""
        found = self._find(call)
        if found is None or found.run is None:
            return None
        node_id = call.node_id.removeprefix(found.prefix)
        inside = replace(call, node_id=node_id, prompt=found.prompt, prefix=found.prefix)
        return found.run, inside

    def _find(self, call: NodeCall) -> _FileRun | None:
        for each in reversed(self._runs):
            if each.prompt_id == call.prompt_id and call.node_id.startswith(each.prefix):
                return each
        return None

    async def execute(
        self, call: NodeCall, workflow_path: str, inputs: Mapping[str, Any]
    ) -> dict[str, Any] | Expansion:
        """What the node does: the first time it expands, and as the last of those it has results.

        WorkflowError: the file, its inputs, or a follower's answer.
        """
        found = self._find(call)
        if found is not None and call.node_id == found.prefix + _RESULTS:
            return await self._results(found, call)
        work = self._work
        if work.instance_index != 0:
            return {}  # the leader's order brings the file here
        if not work.host.can_expand:
            raise WorkflowError(
                "this ComfyUI runs with --cache-none, which has no node expansion: a workflow file "
                "cannot run inside of another workflow"
            )
        self._check_no_recursion(call, workflow_path)
        await work.wait_until_ready(call)
        prompt = self._load(workflow_path, inputs)
        run = work.begin_file(prompt) if work.has_followers else None
        flat = expand_all(prompt) if run is None else run.prompt
        prefix = f"{call.node_id}.file{next(self._numbers)}."
        found = _FileRun(call.prompt_id, workflow_path, prefix, flat, run)
        self._runs.append(found)
        work.host.watch(call.prompt_id, on_over=lambda state: self._on_over(found, state))
        if run is not None:
            await wait(run.accepted, work.host)
        return self._expansion(found)

    def _check_no_recursion(self, call: NodeCall, workflow_path: str) -> None:
        """Paths that come from links are known only now."""
        around = [
            each.workflow_path
            for each in self._runs
            if each.prompt_id == call.prompt_id and call.node_id.startswith(each.prefix)
        ]
        if workflow_path in around:
            raise WorkflowError(f"the workflow runs itself: {' > '.join((*around, workflow_path))}")

    def _load(self, workflow_path: str, inputs: Mapping[str, Any]) -> Prompt:
        host = self._work.host
        prompt = file_prompt(workflow_path, read=host.read_workflow, node_type=host.node_type)
        for node_id, node in sorted(prompt.items()):
            if not host.node_type(node["class_type"]).is_known:
                raise WorkflowError(
                    f"{workflow_path}: {name_of(prompt, node_id)}: there is no such node class here"
                )
        outputs = [
            each for each, node in prompt.items() if host.node_type(node["class_type"]).is_output
        ]
        if not outputs:
            raise WorkflowError(
                f"{workflow_path}: the workflow has no output node, such as SaveImage"
            )
        return with_outputs_only(with_inputs(prompt, inputs, workflow_path), outputs)

    def _expansion(self, found: _FileRun) -> Expansion:
        nodes = with_prefix(found.prompt, found.prefix)
        after = comes_after(nodes)
        results = found.prefix + _RESULTS
        nodes[results] = {"class_type": NODE, "inputs": {"workflow_path": RECEIVED, **after}}
        return Expansion(nodes, [results, 0])

    async def _results(self, found: _FileRun, call: NodeCall) -> dict[str, Any]:
        own: dict[str, Any] = {"0": {}}
        if found.run is None:
            return own
        results = await found.run.wait_for_followers(call)
        self._end(found, "the workflow is over", succeeded=True)
        return own | results

    def _on_over(self, found: _FileRun, state: PromptState) -> None:
        """The prompt that ran it is over, and may have no other run that would end with it."""
        succeeded = state.phase is Phase.SUCCEEDED
        self._end(found, "the prompt that ran it is over", succeeded=succeeded)

    def _end(self, found: _FileRun, reason: str, *, succeeded: bool) -> None:
        if found in self._runs:
            self._runs.remove(found)
            if found.run is not None:
                self._work.end_file(found.run, reason, succeeded=succeeded)
