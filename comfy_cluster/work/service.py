"""The work of an instance among others: which kind of run a prompt gets, and who is told.

How it works. On the leader a prompt of its user runs in regions (`LeaderRun`), or as a whole on all
instances (`WorkflowRun`) if it was queued by "Queue Cluster" or has a ClusterExecuteCurrentWorkflow
node. On followers the leader's orders have a run of the same kind; what their own users queue runs
alone.

What "Queue Cluster" queues here is ordered from followers when it starts, and not before: they
would wait for the leader's part of it, while the leader is at a prompt that waits for them. When it
is queued they are only asked whether they could run it.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_cluster.cluster import Cluster
from comfy_cluster.config import LEADER
from comfy_cluster.errors import WorkflowError
from comfy_cluster.transport.handle import Handle, all_of
from comfy_cluster.work.follower_run import FollowerRun
from comfy_cluster.work.following import Following
from comfy_cluster.work.host import PRIVATE_EXTRA_DATA, Host, Phase, PromptState
from comfy_cluster.work.leader_run import LeaderRun
from comfy_cluster.work.leading import Leading, unless_lost
from comfy_cluster.work.orders import Order, OrderKind
from comfy_cluster.work.plan import RegionPlan, births_in, plan_regions
from comfy_cluster.work.region_run import RegionRun
from comfy_cluster.work.run import INTERRUPT_POLL, NodeCall, Run, new_prompt_id, wait
from comfy_cluster.work.shares import Members
from comfy_cluster.work.work import Work
from comfy_cluster.work.workflow_run import WorkflowRun
from comfy_cluster.workflows.files import EXECUTE_CURRENT, check_waits
from comfy_cluster.workflows.prompt import Prompt, plain
from comfy_cluster.workflows.rewrite import comes_after, with_outputs_only, with_positions
from comfy_cluster.workflows.subgraphs import expand_all

# Seconds that a prompt waits for the other instances: users start them all at once.
READY_TIMEOUT = 60.0
# Id of the node that "Queue Cluster" adds to the leader's prompt, to wait for the followers.
LAST_NODE = "cluster"


@dataclass(frozen=True, slots=True)
class _Queued:
    """A whole workflow that waits in the leader's queue."""

    job_id: str
    prompt: Prompt
    outputs: Sequence[str]
    extra_data: Mapping[str, Any]


class ClusterWork(Work):
    """See `work.Work`."""

    def __init__(self, cluster: Cluster, host: Host) -> None:
        super().__init__(host)
        self._cluster = cluster
        self.instance_index = cluster.instance_index
        self.instance_count = cluster.instance_count
        self._leading: Leading | None = None
        self._queued: dict[str, _Queued] = {}
        self._beginning = threading.RLock()  # a queued workflow begins once
        if cluster.instance_count == 1:
            return
        if cluster.is_leader:
            self._leading = Leading(cluster)
            self.has_followers = True
        else:
            Following(
                cluster,
                host,
                make_run=self._run_for_order,
                add_run=self.add_run,
                remove_run=self.remove_run,
            )

    def info_text(self) -> str:
        return self._cluster.info().text()

    def status(self) -> str:
        return self._cluster.info().to_json()

    # Prompts of this instance's own user.

    async def run_of(self, call: NodeCall) -> tuple[Run, NodeCall]:
        run, call = await super().run_of(call)
        if isinstance(run, WorkflowRun):
            await wait(run.accepted, self.host)
        return run, call

    async def begin(self, call: NodeCall) -> Run:
        leading = self._leading
        if leading is None:
            return await super().begin(call)
        await self.wait_until_ready(call)
        self._begin_queued(call.prompt_id)
        if call.prompt_id in self._runs:  # another node was first while this one waited
            return self._runs[call.prompt_id]
        outputs = self.host.requested_outputs(call.prompt_id)
        prompt: Prompt = expand_all(plain(call.original))
        if outputs is not None:
            prompt = with_outputs_only(prompt, outputs)
        extra_data = self.host.extra_data(call.prompt_id)
        if any(node.get("class_type") == EXECUTE_CURRENT for node in prompt.values()):
            run = self._new_workflow_run(prompt, _job_id("workflow"))
            self.follow_prompt(call.prompt_id, run)
            self._order_whole(run, extra_data)
            return run
        return self.follow_prompt(call.prompt_id, self._leader_run(call, prompt, extra_data))

    def _leader_run(
        self, call: NodeCall, prompt: Prompt, extra_data: Mapping[str, Any]
    ) -> LeaderRun:
        cluster, leading = self._cluster, self._leading
        assert leading is not None
        plans = [plan.with_extra_data(extra_data) for plan in plan_regions(prompt, self.host)]

        def begin_region(plan: RegionPlan) -> RegionRun:
            return RegionRun(plan, job_id=_job_id(call.prompt_id), cluster=cluster, leading=leading)

        return LeaderRun(
            plans, host=self.host, begin_region=begin_region, allocate=cluster.allocate
        )

    async def wait_until_ready(self, call: NodeCall) -> None:
        cluster = self._cluster
        if self._leading is None:
            return
        if cluster.ready.done():
            cluster.wait_until_ready(0.0)  # raises what has ended this instance
            return
        waited = 0.0

        def show() -> None:
            nonlocal waited
            waited += INTERRUPT_POLL
            connected = len(cluster.connected_peers) + 1
            text = f"Connected: {connected}/{cluster.instance_count} instances, waiting for others"
            self.host.show_progress(call.prompt_id, call.display_id, 0, 1, text)
            if waited >= READY_TIMEOUT:
                cluster.wait_until_ready(0.0)  # raises, and names those that are missing

        await wait(cluster.ready, self.host, on_tick=show)

    # Whole workflows.

    def _new_workflow_run(self, prompt: Prompt, job_id: str) -> WorkflowRun:
        members = Members((LEADER, *self._cluster.connected_peers), LEADER)
        check_waits(prompt)
        job = contextlib.ExitStack()
        job.enter_context(self._cluster.job(job_id))
        return WorkflowRun(job_id, prompt, members, cluster=self._cluster, host=self.host, job=job)

    def _order_whole(self, run: WorkflowRun, extra_data: Mapping[str, Any]) -> None:
        """Has all followers queue the run's prompt."""
        assert self._leading is not None
        births = births_in(run.prompt, self.host)
        prompt = with_positions(run.prompt, births)
        assignments = []
        for peer in run.members.others:
            order = Order(
                job_id=run.job_id,
                prompt_id=new_prompt_id(),
                kind=OrderKind.WORKFLOW.value,
                prompt=prompt,
                members=run.members.instances,
                positions={birth.node_id: birth.fan_outs for birth in births},
                extra_data=extra_data,
            )
            assignments.append(self._leading.give(peer, order))
        run.follow(assignments)

    def queue_on_all(
        self, prompt: Prompt, extra_data: Mapping[str, Any], *, outputs: list[str]
    ) -> tuple[str, str, Handle[None]]:
        if self.instance_count == 1:
            return super().queue_on_all(prompt, extra_data, outputs=outputs)
        if self._leading is None:
            raise WorkflowError(
                f"this is instance {self.instance_index}, a follower: queue it on the leader's page"
            )
        self._cluster.wait_until_ready(0.0)
        prompt_id = new_prompt_id()
        flat = with_outputs_only(expand_all(plain(prompt)), outputs)
        check_waits(flat)
        found = _Queued(_job_id("workflow"), flat, outputs, extra_data)
        queued = self._checked(flat).and_then(lambda _: self._queue_here(prompt_id, found))
        return found.job_id, prompt_id, queued

    def _checked(self, prompt: Prompt) -> Handle[Any]:
        """Done when each follower has said that it could run it; lost ones are not waited for."""
        assert self._leading is not None
        members = (LEADER, *self._cluster.connected_peers)
        handles = []
        for peer in self._cluster.connected_peers:
            kind = OrderKind.CHECK.value
            order = Order(_job_id("check"), new_prompt_id(), kind, prompt, members)
            finished: Handle[Any] = self._leading.give(peer, order).finished
            handles.append(finished.recover(unless_lost))
        return all_of(handles, "what followers say of the workflow")

    def _queue_here(self, prompt_id: str, found: _Queued) -> Handle[None]:
        self._queued[prompt_id] = found
        prompt: dict[str, Any] = copy.deepcopy(dict(found.prompt))
        if not any(node.get("class_type") == EXECUTE_CURRENT for node in prompt.values()):
            # It is over here when it is over everywhere: until then it can be interrupted, and
            # what goes wrong on a follower fails it.
            last = LAST_NODE
            while last in prompt:
                last += "_"
            after = comes_after(found.outputs)
            prompt[last] = {"class_type": EXECUTE_CURRENT, "inputs": {"trigger": "", **after}}
        queued = self.host.submit(prompt, prompt_id, extra_data=found.extra_data, is_first=False)
        queued.add_done_callback(lambda done: self._on_queued(prompt_id, done))
        return queued

    def _on_queued(self, prompt_id: str, queued: Handle[None]) -> None:
        if queued.exception() is not None:
            del self._queued[prompt_id]
            return
        self.host.watch(
            prompt_id,
            on_progress=lambda _: self._begin_queued(prompt_id),
            on_over=lambda state: self._on_queued_over(prompt_id, state),
        )

    def _begin_queued(self, prompt_id: str) -> None:
        """A prompt runs: if it is a whole workflow, the followers get their orders now."""
        with self._beginning:
            found = self._queued.get(prompt_id)
            if found is None:
                return
            del self._queued[prompt_id]
            run = self._new_workflow_run(found.prompt, found.job_id)
            told = {k: v for k, v in found.extra_data.items() if k not in PRIVATE_EXTRA_DATA}
            try:
                # Before nodes know the run: they wait until its orders are accepted.
                self._order_whole(run, told)
            except BaseException as error:
                self.close_run(run, str(error), succeeded=False)
                raise
            self.follow_prompt(prompt_id, run)

    def _on_queued_over(self, prompt_id: str, state: PromptState) -> None:
        if state.phase is Phase.SUCCEEDED:  # perhaps before anybody saw that it ran
            self._begin_queued(prompt_id)
        self._queued.pop(prompt_id, None)

    def begin_file(self, prompt: Prompt) -> WorkflowRun:
        run = self._new_workflow_run(expand_all(prompt), _job_id("workflow"))
        self._order_whole(run, {})
        return run

    def end_file(self, run: WorkflowRun, reason: str, *, succeeded: bool) -> None:
        self.close_run(run, reason, succeeded=succeeded)

    async def followers_results(self, call: NodeCall) -> dict[str, Any]:
        run, _ = await self.run_of(call)
        if isinstance(run, WorkflowRun) and self._leading is not None:
            return await run.wait_for_followers(call)
        return {}

    def close_run(self, run: Run, reason: str, *, succeeded: bool) -> None:
        if isinstance(run, WorkflowRun) and self._leading is not None:
            for assignment in run.assignments if run.failure or not succeeded else ():
                self._leading.cancel(assignment, reason)
        super().close_run(run, reason, succeeded=succeeded)

    # Orders, on followers.

    def _run_for_order(self, order: Order) -> Run:
        if order.kind == OrderKind.REGION.value:
            return FollowerRun(order, cluster=self._cluster, host=self.host)
        members = Members(order.members, self.instance_index)
        return WorkflowRun(
            order.job_id,
            order.prompt,
            members,
            cluster=self._cluster,
            host=self.host,
            positions=order.positions,
        )


def _job_id(of: str) -> str:
    """Unique in the life of the cluster: a job id is used once."""
    return f"{of[:120]}:{uuid.uuid4().hex[:12]}"
