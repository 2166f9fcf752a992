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
from comfy_cluster.cluster.collectives import Kind
from comfy_cluster.cluster.grace import Grace
from comfy_cluster.config import LEADER, OnLost
from comfy_cluster.errors import PeerLost, TransferCancelled, WorkflowError
from comfy_cluster.transport.handle import Handle, all_ended, all_of
from comfy_cluster.work.host import Host
from comfy_cluster.work.kinds import BatchKind, with_positions
from comfy_cluster.work.leading import Assignment, unless_lost
from comfy_cluster.work.plan import (
    Outcome,
    RegionPlan,
    fan_outs_before,
    merged,
    mixed_lists_text,
    other_list_behind,
    other_list_text,
    plan_regions,
    shares_readers,
)
from comfy_cluster.work.redo import Redos
from comfy_cluster.work.region_run import DECODING_GRACE, lost_text
from comfy_cluster.work.run import Expansion, NodeCall, Quiet, wait
from comfy_cluster.work.shares import (
    Members,
    Offer,
    Piece,
    Share,
    agreed_sizes,
    are_lists_cut,
    positions_of,
)
from comfy_cluster.work.solo_run import LocalBroadcasts
from comfy_cluster.workflows.broadcasts import broadcast_heard_by
from comfy_cluster.workflows.prompt import Prompt, name_of
from comfy_cluster.workflows.regions import FAN_OUTS, GATHERS, SENDERS
from comfy_cluster.workflows.rewrite import Birth

logger = logging.getLogger("comfy_cluster.work")


# In place of what a broadcast node of the leader has, when it does not run.
NOT_RUN = {"comfy_cluster": "it did not run"}


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
        self._redos = Redos(host, cluster.allocate)
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
        handles = [each.accepted.recover(unless_lost) for each in self._assignments]
        return all_of(handles, "orders to followers")

    def results(self) -> Handle[dict[str, Any]]:
        """By instance what its output nodes made, once all followers are through.

        Those that were lost are left out, unless that is to fail.
        """
        names = [str(each.instance) for each in self._assignments]
        finished: list[Handle[Any]] = [each.finished for each in self._assignments]
        if self._on_lost is not OnLost.FAIL:
            finished = [each.recover(unless_lost) for each in finished]

        def by_instance(made: list[Any]) -> dict[str, Any]:
            pairs = zip(names, made, strict=True)
            return {name: dict(each) for name, each in pairs if each is not None}

        results = all_of(finished, "results of followers").then(by_instance)
        self._fail_with_this_run(LEADER, results)
        return results

    async def wait_for_followers(self, call: NodeCall) -> dict[str, Any]:
        """`results`, for a node of the leader that waits for them."""
        waiting = self._broadcasts.waiting
        with Quiet(call, self._host, waiting, self._leave_out) as quiet:
            return await wait(self.results(), self._host, on_tick=quiet.look)

    def _on_finished(self, peer: int, finished: Handle[Any]) -> None:
        error = finished.exception()
        with self._lock:  # what is waited for later has a grace of its own
            pending = [handle for source, handle in self._pending if source == peer]
        if error is None:
            missing = WorkflowError(f"instance {peer} ended the workflow without sending this")
            self._grace.call_later(lambda: _abandon(pending, missing))
        elif isinstance(error, PeerLost):
            self._warn(f"{error}. What its own output nodes make is missing")
            _abandon(pending, error)
        elif not isinstance(error, TransferCancelled):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self.failure = error
            pending = [handle for _, handle in self._pending]
        _abandon(pending, error)

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
        self._check_lists(call.node_id, sizes)
        if call.node_id in self._handled(Kind.FAN_OUT):  # once more in one prompt
            return self._slices(call.node_id, offer, LEADER)
        for peer in self.members.others:
            slices = self._slices(call.node_id, offer, peer)
            self._send(call.node_id, (list(sizes), slices), [peer], kind, Kind.FAN_OUT)
        return self._slices(call.node_id, offer, LEADER) if any(sizes) else values

    def _check_lists(self, node_id: str, sizes: Sequence[int]) -> None:
        shares = Share(LEADER, tuple(map(range, sizes))).over(self.members.instances)
        if are_lists_cut(shares, len(sizes)):
            reader = other_list_behind(self.prompt, node_id, self._host)
            if reader is not None:
                raise WorkflowError(other_list_text(self.prompt, reader))

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
        await wait(sent.recover(unless_lost), self._host)
        return result

    async def _collect(
        self, call: NodeCall, kind: BatchKind, values: list[Any], collective: Kind
    ) -> list[Any] | Expansion:
        shares = self._shares_at(call.node_id)
        if not shares:  # there was nothing to distribute
            return values
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
        plan = self._plan_at(call.node_id)
        if call.node_id in plan.mixed_ends and len(outcome.pieces) > 1:
            self._warn(mixed_lists_text(self.prompt, call.node_id))
        show()
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
        outcome = received.then(lambda got: self._piece(call, share, got))
        return outcome.recover(lambda error: self._without(call, share, error))

    def _piece(self, call: NodeCall, share: Share, values: Any) -> Outcome:
        if not values:
            name = name_of(self.prompt, call.node_id)
            raise WorkflowError(f"{name} did not run on instance {share.instance}")
        return Outcome((Piece(share, list(values)),))

    def _without(self, call: NodeCall, share: Share, error: BaseException) -> Handle[Outcome]:
        is_redo_elsewhere = not self._is_leader and self._on_lost is OnLost.REDO
        is_final = is_redo_elsewhere or self._on_lost is OnLost.FAIL
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
            self._host.show_warning(text)

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

    def positions_of(self, share: Share, birth: Birth) -> list[range]:
        """By batch of a share the positions of a latent that is born of it."""
        offers = {each: self._offers[each] for each in birth.fan_outs if each in self._offers}
        sizes = agreed_sizes(offers, {}) if offers else tuple(map(len, share.ranges))
        return positions_of(share, list(offers.values()), sizes)

    def _leave_out(self) -> None:
        """On the leader nothing runs any more: followers need not wait for what did not run.

        What is behind a fan-out or broadcast is blocked there too. What lacks the leader's part of
        a gather fails.
        """
        for node_id, node in self.prompt.items():
            class_type = node.get("class_type")
            for kind, classes, value in (
                (Kind.FAN_OUT, FAN_OUTS, ([], [])),
                (Kind.BROADCAST, SENDERS, NOT_RUN),
                (Kind.ALL_GATHER, GATHERS, []),
            ):
                if class_type in classes and node_id not in self._handled(kind):
                    name = name_of(self.prompt, node_id)
                    logger.info("= %s did not run on the leader", name)
                    self._send(node_id, value, self.members.others, None, kind)

    async def broadcast(self, call: NodeCall, value: Any) -> Any:
        if not self._is_leader:
            return await self._heard(call.node_id)
        if call.node_id not in self._handled(Kind.BROADCAST):
            self._send(call.node_id, value, self.members.others, None, Kind.BROADCAST)
        self._broadcasts.put(call.node_id, value)
        return value

    async def listen(self, call: NodeCall) -> Any:
        source = broadcast_heard_by(self.prompt, call.node_id)
        if self._is_leader:
            return await self._broadcasts.hear(source, call, self._host)
        return await self._heard(source)

    async def _heard(self, source: str) -> Any:
        value = await self._received(source, LEADER, Kind.BROADCAST)
        is_there = not isinstance(value, dict) or value.keys() != NOT_RUN.keys()
        return value if is_there else self._host.stop_blocked()

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
        self._fail_with_this_run(source, received)
        for assignment in self._assignments:
            if assignment.instance == source and assignment.finished.done():
                self._on_finished(source, assignment.finished)
        return received

    def _fail_with_this_run(self, source: int, handle: Handle[Any]) -> None:
        with self._lock:
            self._pending.append((source, handle))
            failure = self.failure
        handle.add_done_callback(lambda done: self._forget(source, done))
        if failure is not None:
            handle.abandon(failure)

    def _forget(self, source: int, handle: Handle[Any]) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._pending.remove((source, handle))

    async def _received(self, node_id: str, source: int, collective: Kind) -> Any:
        """What a node gets, also when it runs once more."""
        if (node_id, collective) not in self._handles:
            self._handles[node_id, collective] = self._receive(node_id, source, collective)
        return await wait(self._handles[node_id, collective], self._host)


def _abandon(handles: Sequence[Handle[Any]], error: BaseException) -> None:
    for handle in handles:
        handle.abandon(error)


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

    def positions_of(self, share: Share, birth: Birth) -> list[range]:
        return self.run.positions_of(share, birth)
