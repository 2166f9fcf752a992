"""`Work`: what one ComfyUI process does for the cluster; the one thing that nodes talk to.

This one is that of a cluster of one, and loads nothing of the network. `service.ClusterWork` is
that of an instance among others.

How it works. Each prompt has a `Run`, made when its first cluster node asks for it. It ends with
its prompt, whatever becomes of that.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.files import FileRuns
from comfy_cluster.work.host import Host, Phase, PromptState
from comfy_cluster.work.run import NodeCall, Run, new_prompt_id
from comfy_cluster.work.solo_run import SoloRun
from comfy_cluster.workflows.prompt import Prompt, plain
from comfy_cluster.workflows.rewrite import with_outputs_only

if TYPE_CHECKING:
    from comfy_cluster.work.workflow_run import WorkflowRun


class Work:
    """One process's part. Its async methods are for nodes, the others for any thread."""

    instance_index = 0
    instance_count = 1
    has_followers = False
    """Whether workflow files are ordered from others."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.files = FileRuns(self)
        self._runs: dict[str, Run] = {}
        self._originals: dict[str, Prompt] = {}  # of the runs that nodes have asked for
        self._lock = threading.Lock()  # guards the runs

    def info_text(self) -> str:
        """What ClusterInfo shows."""
        return (
            "Instance 0 of 1 (LEADER), IDLE\nConnected: 1/1 instances\n"
            "No COMFY_CLUSTER_* variable is set: a cluster of one"
        )

    def status(self) -> str:
        """`ClusterInfo.to_json`, for `comfy-cluster status`."""
        from comfy_cluster.cluster.info import ClusterInfo

        return ClusterInfo.of_one().to_json()

    # Nodes.

    def call(self, *, node_id: str, prompt: Prompt, dynprompt: Any) -> NodeCall:
        """One call of a node, from what ComfyUI hands to it."""
        prompt_id = self.host.running_prompt_id()
        if dynprompt is None:
            return NodeCall(prompt_id, node_id, prompt, node_id, prompt)
        all_nodes = {each: dynprompt.get_node(each) for each in dynprompt.all_node_ids()}
        display_id = str(dynprompt.get_display_node_id(node_id))
        return NodeCall(prompt_id, node_id, all_nodes, display_id, prompt)

    async def run_of(self, call: NodeCall) -> tuple[Run, NodeCall]:
        """The run that a node belongs to, and the call as that run knows it.

        Waits for the other instances where they are needed. ClusterError: they do not come, or the
        workflow cannot run on them.
        """
        found = self.files.run_of(call)
        if found is not None:
            return found
        run = self._runs.get(call.prompt_id)
        if run is not None and self._is_of_another_prompt(call):
            self.remove_run(call.prompt_id)
            self.close_run(run, "its prompt is over", succeeded=True)
            run = None
        if run is None:
            run = await self.begin(call)
        if call.prompt_id not in self._originals:
            self._originals[call.prompt_id] = call.original
        return run, call

    def _is_of_another_prompt(self, call: NodeCall) -> bool:
        """Whether a client gave this prompt the id of one whose end was not seen yet."""
        return self._originals.get(call.prompt_id, call.original) is not call.original

    async def wait_until_ready(self, call: NodeCall) -> None:
        """Until enough instances are connected. DiscoveryError: they do not come."""

    async def begin(self, call: NodeCall) -> Run:
        """The run of a prompt that was queued here, by this instance's own user."""
        return self.follow_prompt(call.prompt_id, SoloRun(self.host))

    async def followers_results(self, call: NodeCall) -> dict[str, Any]:
        """What the followers made of the workflow that a node is in, by instance."""
        return {}

    # Queueing.

    def queue_on_all(
        self, prompt: Prompt, extra_data: Mapping[str, Any], *, outputs: list[str]
    ) -> tuple[str, str, Handle[None]]:
        """ "Queue Cluster": job id, prompt id, and a handle for when all have it in their queue.

        `outputs`: the output nodes to run. ClusterError: the others are not there. The handle fails
        with WorkflowError if one of them cannot run it: then none does.
        """
        prompt_id = new_prompt_id()
        wanted = with_outputs_only(plain(prompt), outputs)
        queued = self.host.submit(wanted, prompt_id, extra_data=extra_data, is_first=False)
        return prompt_id, prompt_id, queued

    def begin_file(self, prompt: Prompt) -> WorkflowRun:
        """A workflow of a file, ordered from all followers."""
        raise NotImplementedError("there are no followers")

    def end_file(self, run: WorkflowRun, reason: str, *, succeeded: bool) -> None:
        """This instance's part of it is over."""

    # Runs and their ends.

    def add_run(self, prompt_id: str, run: Run) -> None:
        """Makes a run known to the nodes of a prompt."""
        with self._lock:
            self._runs[prompt_id] = run

    def remove_run(self, prompt_id: str) -> None:
        """The prompt is over."""
        with self._lock:
            self._runs.pop(prompt_id, None)
            self._originals.pop(prompt_id, None)

    def follow_prompt(self, prompt_id: str, run: Run) -> Run:
        """Adds a run that ends with its prompt."""
        self.add_run(prompt_id, run)
        self.host.watch(prompt_id, on_over=lambda state: self._on_over(prompt_id, run, state))
        return run

    def _on_over(self, prompt_id: str, run: Run, state: PromptState) -> None:
        succeeded = state.phase is Phase.SUCCEEDED
        if self._runs.get(prompt_id) is run:
            self.remove_run(prompt_id)
        reason = state.message or f"the prompt {state.phase.value}"
        self.close_run(run, reason, succeeded=succeeded)

    def close_run(self, run: Run, reason: str, *, succeeded: bool) -> None:
        """Ends a run that nothing asks for any more."""
        run.close(reason, succeeded=succeeded)
