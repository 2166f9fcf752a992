"""A prompt on the leader whose regions run on all instances (spec.md section 5A).

How it works. Each region is a `RegionRun` once its fan-outs run, and another one when they run
again in the same prompt, as in a loop. What no follower can do any more is done here (`redo.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from comfy_cluster.errors import WorkflowError
from comfy_cluster.work.host import Host
from comfy_cluster.work.kinds import Allocate, BatchKind
from comfy_cluster.work.plan import Outcome, RegionPlan
from comfy_cluster.work.redo import Redos
from comfy_cluster.work.region_run import RegionRun
from comfy_cluster.work.run import Expansion, NodeCall, wait
from comfy_cluster.work.shares import Offer, Piece
from comfy_cluster.work.solo_run import LocalBroadcasts
from comfy_cluster.workflows.broadcasts import broadcast_heard_by
from comfy_cluster.workflows.prompt import name_of
from comfy_cluster.workflows.rewrite import with_outputs_only


class LeaderRun:
    """See `run.Run`."""

    def __init__(
        self,
        plans: list[RegionPlan],
        *,
        host: Host,
        begin_region: Callable[[RegionPlan], RegionRun],
        allocate: Allocate,
    ) -> None:
        """`allocate` gives the memory of joined results."""
        self._plans = {
            node_id: plan
            for plan in plans
            for node_id in (*plan.region.fan_outs, *plan.region.ends)
        }
        self._regions = plans
        self._host = host
        self._begin_region = begin_region
        self._runs: dict[str, RegionRun] = {}
        self._redos = Redos(host, allocate)
        self._shown: dict[str, str] = {}  # by end: the progress that the user sees
        self._broadcast_values: dict[str, Any] = {}
        self._broadcasts = LocalBroadcasts()
        self._ended = LocalBroadcasts()  # ends that have their result
        self._lock = threading.Lock()  # guards the runs against `close`
        self._closed_because: str | None = None

    def needs_input(self, call: NodeCall) -> bool:
        return True

    async def fan_out(self, call: NodeCall, kind: BatchKind, values: list[Any]) -> list[Any]:
        if call.node_id in self._redos:
            return self._redos.fan_out(call.node_id, values)
        for end in self._plan_of(call).waits_for:
            await wait(self._ended.of(end), self._host)
        run = self._run_for(call, values)
        slices = run.offer(call.node_id, Offer(kind, values))
        await wait(run.accepted, self._host)
        return slices

    def _run_for(self, call: NodeCall, values: list[Any]) -> RegionRun:
        """The run of a fan-out's region; a new one where it has run already, as in a loop."""
        plan = self._plan_of(call)
        run = self._runs.get(plan.region.name)
        if run is not None and not run.has_other_offer(call.node_id, values):
            return run
        if run is not None:
            run.close("its region runs once more")
        run = self._begin_region(plan)
        for node_id in plan.region.broadcasts:
            if node_id in self._broadcast_values:
                run.offer_broadcast(node_id, self._broadcast_values[node_id])
        with self._lock:
            self._runs[plan.region.name] = run
            closed_because = self._closed_because
        if closed_because is not None:
            run.close(closed_because)
        return run

    def _plan_of(self, call: NodeCall) -> RegionPlan:
        plan = self._plans.get(call.node_id)
        if plan is None:
            raise WorkflowError(
                f"{name_of(call.prompt, call.node_id)} was made while the workflow runs, by a node "
                "other than ClusterUseSubgraph: its region cannot be told beforehand"
            )
        return plan

    async def fan_in(
        self, call: NodeCall, kind: BatchKind, values: list[Any]
    ) -> list[Any] | Expansion:
        if call.node_id in self._redos:
            return self._redos.fan_in(call, kind, values)
        result = await self._collected(call, kind, values)
        self._ended.put(call.node_id, None)
        return result

    async def _collected(
        self, call: NodeCall, kind: BatchKind, values: list[Any]
    ) -> list[Any] | Expansion:
        plan = self._plan_of(call)
        run = self._runs[plan.region.name]
        if run.own_share.is_empty:
            return values  # there was nothing to distribute
        outcome = await self._outcome_of(run, call)
        own = Piece(run.own_share, values)
        outcome = replace(outcome, pieces=(own, *outcome.pieces))
        run.warn_of_order(call.node_id, outcome.pieces, kind)
        self._show_progress(run, call)
        return self._redos.finish(plan, run, call.node_id, call, kind, outcome)

    async def gather(
        self, call: NodeCall, kind: BatchKind, values: list[Any]
    ) -> list[Any] | Expansion:
        return await self.fan_in(call, kind, values)

    async def _outcome_of(self, run: RegionRun, call: NodeCall) -> Outcome:
        def show() -> None:
            self._show_progress(run, call)

        show()
        outcome = await wait(run.outcome(call.node_id), self._host, on_tick=show)
        show()
        return outcome

    def _show_progress(self, run: RegionRun, call: NodeCall) -> None:
        done, count, items, item_count = run.progress()
        state = f"{done}/{count} instances, {items}/{item_count} {run.item_name}"
        text = "\n".join([state, *run.warnings])
        if self._shown.get(call.node_id) != text:
            self._shown[call.node_id] = text
            self._host.show_progress(call.prompt_id, call.display_id, items, item_count, text)

    async def broadcast(self, call: NodeCall, value: Any) -> Any:
        self._broadcast_values[call.node_id] = value
        for plan in self._regions:
            run = self._runs.get(plan.region.name)
            if run is not None and call.node_id in plan.region.broadcasts:
                run.offer_broadcast(call.node_id, value)
        self._broadcasts.put(call.node_id, value)
        return value

    async def listen(self, call: NodeCall) -> Any:
        outputs = self._host.requested_outputs(call.prompt_id)
        # A broadcast that does not run would never be heard.
        will_run = call.prompt if outputs is None else with_outputs_only(call.prompt, outputs)
        source = broadcast_heard_by(
            {**will_run, call.node_id: call.prompt[call.node_id]}, call.node_id
        )
        value = await self._broadcasts.hear(source, call, self._host)
        return await self.broadcast(call, value)

    def close(self, reason: str, *, succeeded: bool = False) -> None:
        with self._lock:
            self._closed_because = reason
            runs = list(self._runs.values())
        self._broadcasts.close(reason)
        self._ended.close(reason)
        for run in runs:
            run.close(reason)
        self._redos.clear()
        self._broadcast_values.clear()
