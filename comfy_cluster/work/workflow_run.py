"""A whole workflow that every instance runs under one job id (spec.md section 5B).

How it works. The same prompt is queued on all members; each collective node does its instance's
part, under the job's id and the node's own. The leader also has the followers' assignments: what
fails there fails whatever waits here. When the leader's prompt has failed, the followers' are
cancelled; when it has succeeded, they run to their end.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.cluster.collectives import LEADER, Kind
from comfy_cluster.cluster.grace import Grace
from comfy_cluster.config import OnLost
from comfy_cluster.errors import PeerLost, TransferCancelled, WorkflowError
from comfy_cluster.transport.handle import Handle, all_ended, all_of
from comfy_cluster.work.host import Host
from comfy_cluster.work.kinds import BatchKind, with_positions
from comfy_cluster.work.leading import Assignment
from comfy_cluster.work.plan import (
    Outcome,
    RegionPlan,
    fan_outs_before,
    merged,
    plan_regions,
    shares_readers,
)
from comfy_cluster.work.redo import Redos
from comfy_cluster.work.region_run import DECODING_GRACE, lost_text
from comfy_cluster.work.run import Expansion, NodeCall, wait
from comfy_cluster.work.shares import Offer, Piece, Share, agreed_sizes
from comfy_cluster.work.solo_run import LocalBroadcasts
from comfy_cluster.workflows.broadcasts import broadcast_heard_by
from comfy_cluster.workflows.prompt import Prompt, name_of

logger = logging.getLogger("comfy_cluster.work")


@dataclass(frozen=True, slots=True)
class Members:
    """Who runs the workflow, in the order of their slices."""

    instances: tuple[int, ...]
    own: int

    @property
    def others(self) -> list[int]:
        return [each for each in self.instances if each != self.own]


class WorkflowRun:
    """See `run.Run`. `prompt` is flattened: without ClusterUseSubgraph."""

    def __init__(
        self,
        job_id: str,
        prompt: Prompt,
        members: Members,
        *,
        cluster: Cluster,
        host: Host,
        job: contextlib.ExitStack | None = None,
        positions: Collection[str] = (),
    ) -> None:
        """`job`: what keeps the job open on the leader; closed when all of it is over.

        `positions`: followers' nodes that tell positions. They have the class of a fan-out, and
        nothing here may take them for one.
        """
        self.job_id = job_id
        self.prompt = {**prompt, **{each: {**prompt[each], "class_type": ""} for each in positions}}
        self._positions = frozenset(positions)
        self.members = members
        self._cluster = cluster
        self._on_lost = cluster.config.on_lost
        self._host = host
        self._job = job or contextlib.ExitStack()
        self._offers: dict[str, Offer] = {}
        self._sizes: dict[str, tuple[int, ...]] = {}  # by fan-out: items of each batch
        self._handles: dict[tuple[str, Kind], Handle[Any]] = {}
        self._parts: dict[tuple[str, Kind, int], Handle[Any]] = {}  # what each source brings
        self._pending: list[tuple[int, Handle[Any]]] = []  # source and what it will send
        self._assignments: list[Assignment] = []
        self._broadcasts = LocalBroadcasts()
        self._redos = Redos(host)
        self._grace = Grace(DECODING_GRACE)
        self._lock = threading.Lock()  # guards what is pending, and closing
        self.failure: BaseException | None = None
        """What went wrong beside the nodes here: on a follower, or on the way to one."""
        self._warnings: list[str] = []  # for the user: what was lost

    @property
    def _is_leader(self) -> bool:
        return self.members.own == LEADER

    # The leader's orders.

    def follow(self, assignments: Sequence[Assignment]) -> None:
        """The orders that were given for this run."""
        self._assignments = list(assignments)
        for assignment in assignments:
            assignment.finished.add_done_callback(partial(self._on_finished, assignment.instance))

    @property
    def accepted(self) -> Handle[Any]:
        """Done when all followers have validated and queued it. Fails if one cannot run it."""
        handles = [each.accepted.recover(_unless_lost) for each in self._assignments]
        return all_of(handles, "orders to followers")

    def results(self) -> Handle[dict[str, Any]]:
        """By instance what its output nodes made, once all followers are through.

        Those that were lost are left out, unless that is to fail.
        """
        names = [str(each.instance) for each in self._assignments]
        finished: list[Handle[Any]] = [each.finished for each in self._assignments]
        if self._on_lost is not OnLost.FAIL:
            finished = [each.recover(_unless_lost) for each in finished]

        def by_instance(made: list[Any]) -> dict[str, Any]:
            pairs = zip(names, made, strict=True)
            return {name: dict(each) for name, each in pairs if each is not None}

        return all_of(finished, "results of followers").then(by_instance)

    def _on_finished(self, peer: int, finished: Handle[Any]) -> None:
        error = finished.exception()
        if error is None:
            missing = WorkflowError(f"instance {peer} ended the workflow without sending this")
            self._grace.call_later(lambda: self._give_up_on(peer, missing))
        elif isinstance(error, PeerLost):
            self._give_up_on(peer, error)
        elif not isinstance(error, TransferCancelled):
            self._fail(error)

    def _give_up_on(self, peer: int, error: BaseException) -> None:
        with self._lock:
            pending = [handle for source, handle in self._pending if source == peer]
        for handle in pending:
            handle.abandon(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self.failure = error
            pending = [handle for _, handle in self._pending]
        for handle in pending:
            handle.abandon(error)

    # For the nodes.

    def needs_input(self, call: NodeCall) -> bool:
        return self._is_leader or call.node_id in self._positions

    async def fan_out(self, call: NodeCall, kind: BatchKind, values: list[Any]) -> list[Any]:
        if call.node_id in self._redos:
            return self._redos.fan_out(call.node_id, values)
        if call.node_id in self._positions:
            return self._with_positions(call.node_id, values)
        if not self._is_leader:
            sizes, slices = await self._received(call.node_id, LEADER, Kind.FAN_OUT)
            self._sizes[call.node_id] = tuple(sizes)
            return list(slices)
        offer = self._offers[call.node_id] = Offer(kind, values)
        sizes = self._sizes[call.node_id] = tuple(offer.sizes)
        if call.node_id in self._handled(Kind.FAN_OUT):  # once more in one prompt
            return self._slices(call.node_id, offer, LEADER)
        for peer in self.members.others:
            slices = self._slices(call.node_id, offer, peer)
            self._send(call.node_id, (list(sizes), slices), [peer], kind, Kind.FAN_OUT)
        return self._slices(call.node_id, offer, LEADER) if any(sizes) else values

    def _with_positions(self, node_id: str, values: list[Any]) -> list[Any]:
        shares = self._shares_at(node_id)
        own = [share for share in shares if share.instance == self.members.own]
        parts = [own[0].ranges[index] for index in own[0].batches] if own else []
        return with_positions(values, parts)

    def _handled(self, kind: Kind) -> set[str]:
        return {node_id for node_id, each in self._handles if each is kind}

    def _slices(self, node_id: str, offer: Offer, instance: int) -> list[Any]:
        if self._goes_to_all(node_id, offer):
            return offer.values
        sizes = tuple(offer.sizes)
        return offer.slices_for(self._share(sizes, instance), sizes)

    def _goes_to_all(self, node_id: str, offer: Offer) -> bool:
        """A single item beside other fan-outs, which may have more, is for all of their items."""
        return all(size == 1 for size in offer.sizes) and shares_readers(self.prompt, node_id)

    def _share(self, sizes: Sequence[int], instance: int) -> Share:
        whole = Share(LEADER, tuple(map(range, sizes)))
        shares = {each.instance: each for each in whole.over(self.members.instances)}
        return shares.get(instance, Share(instance, tuple(range(0) for _ in sizes)))

    def _shares_at(self, end: str) -> list[Share]:
        """Who brings results to an end, in the order of the items.

        Without a fan-out before it that is everybody, as if each had one item.
        """
        before = fan_outs_before(self.prompt, end)
        sizes = [self._sizes[each] for each in sorted(before & self._sizes.keys())]
        if not sizes:
            count = len(self.members.instances)
            return Share(LEADER, (range(count),)).over(self.members.instances)
        length = max(map(len, sizes))
        agreed = [max(each[min(index, len(each) - 1)] for each in sizes) for index in range(length)]
        return Share(LEADER, tuple(map(range, agreed))).over(self.members.instances)

    async def fan_in(
        self, call: NodeCall, kind: BatchKind, values: list[Any]
    ) -> list[Any] | Expansion:
        if call.node_id in self._redos:
            return self._redos.fan_in(call, kind, values)
        if not self._is_leader:
            await self._sent(call.node_id, values, [LEADER], kind, Kind.FAN_IN)
            return values
        return await self._collect(call, kind, values, Kind.FAN_IN)

    async def gather(
        self, call: NodeCall, kind: BatchKind, values: list[Any]
    ) -> list[Any] | Expansion:
        if call.node_id in self._redos:
            return self._redos.fan_in(call, kind, values)
        peers = [
            share.instance
            for share in self._shares_at(call.node_id)
            if share.instance != self.members.own
        ]
        sent = self._sent_handle(call.node_id, values, peers, kind, Kind.ALL_GATHER)
        result = await self._collect(call, kind, values, Kind.ALL_GATHER)
        await wait(sent.recover(_unless_lost), self._host)
        return result

    async def _collect(
        self, call: NodeCall, kind: BatchKind, values: list[Any], collective: Kind
    ) -> list[Any] | Expansion:
        shares = self._shares_at(call.node_id)
        outcomes = [self._outcome_of(call, share, values, collective) for share in shares]
        waiting = all_of(outcomes, f"results for {name_of(self.prompt, call.node_id)}")
        done: list[str] = []

        def show() -> None:
            count = sum(outcome.done() for outcome in outcomes)
            text = "\n".join([f"{count}/{len(outcomes)} instances", *self._warnings])
            if done != [text]:
                done[:] = [text]
                self._host.show_progress(
                    call.prompt_id, call.display_id, count, len(outcomes), text
                )

        collected: Handle[Outcome] = waiting.then(merged)
        outcome = await wait(collected, self._host, on_tick=show)
        show()
        plan = self._plan_at(call.node_id)
        return self._redos.finish(
            plan, _Source(self, plan, shares), call.node_id, call, kind, outcome
        )

    def _outcome_of(
        self, call: NodeCall, share: Share, values: list[Any], collective: Kind
    ) -> Handle[Outcome]:
        if share.instance == self.members.own:
            return Handle.completed(Outcome((Piece(share, values),)))
        place = (call.node_id, collective, share.instance)
        if place not in self._parts:  # else the node runs once more in one prompt
            self._parts[place] = self._receive(call.node_id, share.instance, collective)
        received = self._parts[place]
        outcome = received.then(lambda got: Outcome((Piece(share, list(got)),)))
        return outcome.recover(lambda error: self._without(call, share, error))

    def _without(self, call: NodeCall, share: Share, error: BaseException) -> Handle[Outcome]:
        is_final = not self._is_leader or self._on_lost is OnLost.FAIL
        if is_final or not isinstance(error, PeerLost):
            return Handle.failed(error)
        if self._on_lost is OnLost.PARTIAL:
            self._warn(f"{lost_text(share)}, and are missing in the result")
            return Handle.completed(Outcome())
        if not self._plan_at(call.node_id).region.fan_outs:
            return Handle.failed(
                WorkflowError(
                    f"instance {share.instance} was lost, and what it made cannot be made again: "
                    f"there is no fan-out before {name_of(self.prompt, call.node_id)} ({error})"
                )
            )
        return Handle.completed(Outcome(left=(share,)))

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)
            logger.warning("! %s", text)

    def _plan_at(self, end: str) -> RegionPlan:
        """The region that an end closes; one without fan-outs where there is none."""
        with contextlib.suppress(WorkflowError):
            for plan in plan_regions(self.prompt, self._host):
                if end in plan.region.ends:
                    return plan
        return RegionPlan.without_fan_outs(self.prompt, end)

    def slices_of(self, share: Share, plan: RegionPlan) -> Mapping[str, list[Any]]:
        """By fan-out of a region the values of a share."""
        offers = {each: self._offers[each] for each in plan.region.fan_outs}
        sizes = agreed_sizes(offers, plan.names)
        return {each: offer.slices_for(share, sizes) for each, offer in offers.items()}

    async def broadcast(self, call: NodeCall, value: Any) -> Any:
        if not self._is_leader:
            return await self._received(call.node_id, LEADER, Kind.BROADCAST)
        if call.node_id not in self._handled(Kind.BROADCAST):
            self._send(call.node_id, value, self.members.others, None, Kind.BROADCAST)
        self._broadcasts.put(call.node_id, value)
        return value

    async def listen(self, call: NodeCall) -> Any:
        source = broadcast_heard_by(self.prompt, call.node_id)
        if self._is_leader:
            return await wait(self._broadcasts.of(source), self._host)
        return await self._received(source, LEADER, Kind.BROADCAST)

    def close(self, reason: str, *, succeeded: bool = False) -> None:
        self._broadcasts.close(reason)
        self._redos.clear()
        finished = all_ended([each.finished for each in self._assignments])
        finished.add_done_callback(lambda _: self._end())
        if not succeeded:
            # The cluster is told by `leading.cancel`, which whoever gave the orders calls.
            self._fail(TransferCancelled(reason))

    def _end(self) -> None:
        self._grace.close()
        self._offers.clear()
        self._parts.clear()
        self._job.close()

    @property
    def assignments(self) -> Sequence[Assignment]:
        """The orders of this run that the leader gave."""
        return self._assignments

    # Transfers.

    def _key(self, node_id: str) -> CollectiveKey:
        return CollectiveKey(self.job_id, node_id)

    def _send(
        self, node_id: str, value: Any, peers: list[int], kind: BatchKind | None, collective: Kind
    ) -> Handle[None]:
        if not peers:
            return Handle.completed(None)
        sent = self._cluster.send_value(
            self._key(node_id),
            value,
            peers,
            kind=collective,
            is_image=kind is not None and kind.is_image,
            siblings=len(self.members.others) if collective is Kind.FAN_OUT else 1,
        )
        self._handles[node_id, collective] = sent
        sent.add_done_callback(self._on_sent)
        if self.failure is not None:
            raise self.failure
        return sent

    def _on_sent(self, sent: Handle[None]) -> None:
        error = sent.exception()
        if error is not None and not isinstance(error, PeerLost | TransferCancelled):
            self._fail(error)

    def _sent_handle(
        self, node_id: str, value: Any, peers: list[int], kind: BatchKind, collective: Kind
    ) -> Handle[None]:
        """The sending of a node's value, which happens once."""
        if (node_id, collective) in self._handles:
            return self._handles[node_id, collective]
        return self._send(node_id, value, peers, kind, collective)

    async def _sent(
        self, node_id: str, value: Any, peers: list[int], kind: BatchKind, collective: Kind
    ) -> None:
        await wait(self._sent_handle(node_id, value, peers, kind, collective), self._host)

    def _receive(self, node_id: str, source: int, collective: Kind) -> Handle[Any]:
        received = self._cluster.receive_value(self._key(node_id), source, kind=collective)
        with self._lock:
            self._pending.append((source, received))
            failure = self.failure
        received.add_done_callback(lambda done: self._forget(source, done))
        for assignment in self._assignments:
            if assignment.instance == source and assignment.finished.done():
                self._on_finished(source, assignment.finished)
        if failure is not None:
            received.abandon(failure)
        return received

    def _forget(self, source: int, handle: Handle[Any]) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._pending.remove((source, handle))

    async def _received(self, node_id: str, source: int, collective: Kind) -> Any:
        """What a node gets, also when it runs once more."""
        if (node_id, collective) not in self._handles:
            self._handles[node_id, collective] = self._receive(node_id, source, collective)
        return await wait(self._handles[node_id, collective], self._host)


@dataclass(frozen=True, slots=True)
class _Source:
    """The lost slices of one end: see `redo.Source`."""

    run: WorkflowRun
    plan: RegionPlan
    shares: Sequence[Share]

    @property
    def batch_count(self) -> int:
        return len(self.shares[0].ranges) if self.shares else 0

    def slices_of(self, share: Share) -> Mapping[str, list[Any]]:
        return self.run.slices_of(share, self.plan)


def _unless_lost(error: BaseException) -> Handle[None]:
    return Handle.completed(None) if isinstance(error, PeerLost) else Handle.failed(error)
