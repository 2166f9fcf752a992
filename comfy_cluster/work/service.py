"""The work of an instance among others: which kind of run a prompt gets, and who is told.

How it works. On the leader a prompt of its user runs in regions (`LeaderRun`), or as a whole on all
instances (`WorkflowRun`) if it was queued by "Queue Cluster" or has a ClusterExecuteCurrentWorkflow
node. On followers the leader's orders have a run of the same kind; what their own users queue runs
alone.
"""

from __future__ import annotations

import contextlib
import copy
import uuid
from collections.abc import Mapping
from typing import Any

from comfy_cluster.cluster import Cluster
from comfy_cluster.cluster.collectives import LEADER
from comfy_cluster.errors import WorkflowError
from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.follower_run import FollowerRun
from comfy_cluster.work.following import Following
from comfy_cluster.work.host import Host
from comfy_cluster.work.leader_run import LeaderRun
from comfy_cluster.work.leading import Leading
from comfy_cluster.work.orders import Order, OrderKind
from comfy_cluster.work.plan import RegionPlan, births_in, plan_regions
from comfy_cluster.work.region_run import RegionRun
from comfy_cluster.work.run import INTERRUPT_POLL, NodeCall, Run, new_prompt_id, wait
from comfy_cluster.work.work import Work
from comfy_cluster.work.workflow_run import Members, WorkflowRun
from comfy_cluster.workflows.files import EXECUTE_CURRENT
from comfy_cluster.workflows.prompt import Prompt, plain
from comfy_cluster.workflows.rewrite import with_outputs_only, with_positions
from comfy_cluster.workflows.subgraphs import expand_all

# Seconds that a prompt waits for the other instances: users start them all at once.
READY_TIMEOUT = 60.0


class ClusterWork(Work):
    """See `work.Work`."""

    def __init__(self, cluster: Cluster, host: Host) -> None:
        super().__init__(host)
        self._cluster = cluster
        self.instance_index = cluster.instance_index
        self.instance_count = cluster.instance_count
        self._leading: Leading | None = None
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
        await self._wait_until_ready(call)
        if call.prompt_id in self._runs:  # another node was first while this one waited
            return self._runs[call.prompt_id]
        outputs = self.host.requested_outputs(call.prompt_id)
        prompt: Prompt = expand_all(plain(call.original))
        if outputs is not None:
            prompt = with_outputs_only(prompt, outputs)
        extra_data = self.host.extra_data(call.prompt_id)
        if any(node.get("class_type") == EXECUTE_CURRENT for node in prompt.values()):
            run = self._new_workflow_run(prompt)
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

        return LeaderRun(plans, host=self.host, begin_region=begin_region)

    async def _wait_until_ready(self, call: NodeCall) -> None:
        cluster = self._cluster
        if cluster.ready.done():
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

    def _new_workflow_run(self, prompt: Prompt) -> WorkflowRun:
        members = Members((LEADER, *self._cluster.connected_peers), LEADER)
        job_id = _job_id("workflow")
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
                positions=tuple(birth.node_id for birth in births),
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
        if not self._cluster.ready.done():
            self._cluster.wait_until_ready(0.0)
        prompt_id = new_prompt_id()
        run = self._new_workflow_run(with_outputs_only(expand_all(plain(prompt)), outputs))
        self._order_whole(run, {k: v for k, v in extra_data.items() if k != "client_id"})
        self.add_run(prompt_id, run)
        queued = run.accepted.and_then(
            lambda _: self.host.submit(
                copy.deepcopy(run.prompt), prompt_id, extra_data=extra_data, is_first=False
            )
        )
        queued.add_done_callback(lambda done: self._on_queued(prompt_id, run, done))
        return run.job_id, prompt_id, queued

    def _on_queued(self, prompt_id: str, run: WorkflowRun, queued: Handle[None]) -> None:
        error = queued.exception()
        if error is None:
            self.follow_prompt(prompt_id, run)
            return
        self.remove_run(prompt_id)
        self.close_run(run, str(error), succeeded=False)

    def begin_file(self, prompt: Prompt) -> WorkflowRun:
        run = self._new_workflow_run(expand_all(prompt))
        self._order_whole(run, {})
        return run

    def end_file(self, run: WorkflowRun, reason: str, *, succeeded: bool) -> None:
        self.close_run(run, reason, succeeded=succeeded)

    async def followers_results(self, call: NodeCall) -> dict[str, Any]:
        run, _ = await self.run_of(call)
        if isinstance(run, WorkflowRun) and self._leading is not None:
            return await wait(run.results(), self.host)
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
