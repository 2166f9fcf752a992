"""One region of a workflow, run once, as the leader sees it: orders, slices, results, losses.

How it works. The fan-outs offer their batches; once it is known how large they are, each connected
follower gets an order and its slices, and its results are asked for at once, so that they arrive
while the leader computes its own share. When an instance is lost, its share goes to other followers
as a job of its own (`ON_LOST=redo`), and what they cannot do either is left to the leader. Called
by `leader_run.py` for the nodes, and by the threads that bring results.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import operator
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.cluster.collectives import Kind
from comfy_cluster.cluster.grace import Grace
from comfy_cluster.config import LEADER, OnLost
from comfy_cluster.errors import PeerLost, TransferCancelled, WorkflowError
from comfy_cluster.transport.handle import Handle, all_of
from comfy_cluster.work.kinds import BatchKind
from comfy_cluster.work.leading import Assignment, Leading, unless_lost
from comfy_cluster.work.orders import Order, OrderKind
from comfy_cluster.work.plan import Outcome, RegionPlan, merged, mixed_lists_text, other_list_text
from comfy_cluster.work.run import new_prompt_id
from comfy_cluster.work.shares import Offer, Piece, Share, agreed_sizes, are_lists_cut, positions_of
from comfy_cluster.workflows.prompt import name_of
from comfy_cluster.workflows.rewrite import Birth, prompt_for_follower

logger = logging.getLogger("comfy_cluster.work")

# Seconds. A follower ends when its results are here, but they may still have to be decoded.
DECODING_GRACE = 10.0


@dataclass
class _Given:
    """A share that a follower works on."""

    share: Share
    assignment: Assignment
    results: dict[str, Handle[Outcome]] = field(default_factory=dict)
    """By end."""
    replacement: list[_Given] | None = None
    """Those who do it instead, once it was lost."""

    @property
    def is_done(self) -> bool:
        """Whether its results are here; the follower says so a little later."""
        return all(result.done() for result in self.results.values())


class RegionRun:
    """Thread-safe; no method blocks."""

    def __init__(
        self,
        plan: RegionPlan,
        *,
        job_id: str,
        cluster: Cluster,
        leading: Leading,
    ) -> None:
        self.plan = plan
        self._job_id = job_id
        self._cluster = cluster
        self._leading = leading
        self._on_lost = cluster.config.on_lost
        self._offers: dict[str, Offer] = {}
        self._broadcasts: dict[str, Any] = {}
        self._sizes: tuple[int, ...] | None = None
        self._own = Share(LEADER, ())
        self._given: list[_Given] = []
        self._unusable: set[int] = set()  # instances that were lost in it
        self._jobs = contextlib.ExitStack()
        self._begun: set[str] = set()
        self._rounds = itertools.count(1)
        self._lock = threading.RLock()  # guards all of the above
        self._is_closed = False
        self._grace = Grace(DECODING_GRACE)
        self.warnings: list[str] = []
        """For the user: what was lost, and what became of it."""

    # For the nodes.

    def has_other_offer(self, node_id: str, values: Sequence[Any]) -> bool:
        """Whether that fan-out ran with other values: then this is another run of the region.

        With the same ones it runs because ComfyUI has lost its result, and gives it again.
        """
        offer = self._offers.get(node_id)
        return offer is not None and not _are_same(offer.values, values)

    def offer(self, node_id: str, offer: Offer) -> list[Any]:
        """A fan-out has its batches; what it gives to the nodes behind it here.

        Orders go out as soon as the sizes are known. WorkflowError: the fan-outs do not agree.
        """
        with self._lock:
            if node_id in self._offers and self._sizes is not None:  # once more: see above
                return self._own_slices(offer)
            self._offers[node_id] = offer
            if self._sizes is not None:
                return self._offer_late(node_id, offer)
            is_last = self._offers.keys() == set(self.plan.region.fan_outs)
            if is_last or all(size > 1 for size in offer.sizes):
                return self._distribute(node_id)
            # Another fan-out may have more items, each of which goes with its single one. What it
            # gives here is the same in either case, unless it has both.
            if any(size > 1 for size in offer.sizes):
                raise WorkflowError(
                    f"{self.plan.names[node_id]} has {offer.sizes} {offer.kind.name} and is one of "
                    "several fan-outs of its region: lists of batches of one item and of more are "
                    "possible with one fan-out only"
                )
            return offer.values

    def _distribute(self, node_id: str) -> list[Any]:
        sizes = self._sizes = agreed_sizes(self._offers, self.plan.names)
        members = [LEADER, *self._cluster.connected_peers]
        whole = Share(LEADER, tuple(range(size) for size in sizes))
        shares = whole.over(members)
        self._check_lists(shares)
        if not shares or self._is_closed:
            self._own = whole
            return self._offers[node_id].values
        self._own = shares[0]
        self._given = [self._give(share, self._job_id, len(shares) - 1) for share in shares[1:]]
        return self._offers[node_id].slices_for(self._own, sizes)

    def _check_lists(self, shares: Sequence[Share]) -> None:
        if self.plan.other_list is not None and are_lists_cut(shares, self.batch_count):
            raise WorkflowError(other_list_text(self.plan.prompt, self.plan.other_list))

    def _offer_late(self, node_id: str, offer: Offer) -> list[Any]:
        """One of several fan-outs, after the orders went out."""
        assert self._sizes is not None
        agreed = agreed_sizes(self._offers, self.plan.names)
        if agreed != self._sizes:
            raise WorkflowError(
                f"{self.plan.names[node_id]} has {offer.sizes} {offer.kind.name}, where the other "
                f"fan-outs of its region have {list(self._sizes)}"
            )
        for given in self._all_given():
            self._send_slices(given, node_id, len(self._given))
        return self._own_slices(offer)

    def _own_slices(self, offer: Offer) -> list[Any]:
        return (
            offer.values if self._own.is_empty else offer.slices_for(self._own, self._sizes or ())
        )

    def offer_broadcast(self, node_id: str, value: Any) -> None:
        """A broadcast node that the region reads has its value."""
        with self._lock:
            if node_id in self._broadcasts:  # it runs once more
                return
            self._broadcasts[node_id] = value
            for given in self._all_given():
                self._send_broadcast(given, node_id)

    @property
    def accepted(self) -> Handle[Any]:
        """Done when every follower has validated and queued its order.

        Fails if one of them cannot run it; a lost one is none of those.
        """
        with self._lock:
            handles = [
                given.assignment.accepted.recover(unless_lost) for given in self._all_given()
            ]
        return all_of(handles, "orders to followers")

    def outcome(self, end: str) -> Handle[Outcome]:
        """What the followers sent for one end of the region; without this instance's own."""
        with self._lock:
            results = [given.results[end] for given in self._given]
        return all_of(results, f"results for {name_of(self.plan.prompt, end)}").then(merged)

    @property
    def item_name(self) -> str:
        """What the items are, in texts."""
        offer = next(iter(self._offers.values()), None)
        return "items" if offer is None else offer.kind.name

    @property
    def own_share(self) -> Share:
        """What this instance works on."""
        return self._own

    @property
    def batch_count(self) -> int:
        """Batches in the list that was fanned out."""
        return len(self._sizes or (0,))

    def slices_of(self, share: Share) -> dict[str, list[Any]]:
        """By fan-out the values of a share."""
        with self._lock:
            sizes = self._sizes or ()
            return {
                node_id: offer.slices_for(share, sizes) for node_id, offer in self._offers.items()
            }

    def positions_of(self, share: Share, birth: Birth) -> list[range]:
        """By batch of a share the positions of a latent that is born of it."""
        with self._lock:
            offers = [self._offers[each] for each in birth.fan_outs if each in self._offers]
            return positions_of(share, offers, self._sizes or ())

    def progress(self) -> tuple[int, int, int, int]:
        """Instances that are done, all instances, items that are done, all items.

        This instance's own count as done: it is asked when they are.
        """
        with self._lock:
            given = list(self._given)
        done = [each for each in given if each.is_done]
        items = sum(
            int(each.share.item_count * (1.0 if each.is_done else each.assignment.fraction))
            for each in given
        )
        own = self._own.item_count
        total = own + sum(each.share.item_count for each in given)
        return len(done) + 1, len(given) + 1, own + items, total

    def close(self, reason: str) -> None:
        """Cancels what followers still do for it, and lets go of all. Twice is fine."""
        with self._lock:
            self._is_closed = True
            given = self._all_given()
            self._offers = {}
            self._broadcasts = {}
        for each in given:
            self._leading.cancel(each.assignment, reason)
        self._grace.close()
        self._jobs.close()

    # Inside.

    def _all_given(self) -> list[_Given]:
        def walk(all_given: Sequence[_Given]) -> list[_Given]:
            return [found for each in all_given for found in (each, *walk(each.replacement or ()))]

        return walk(self._given)

    def _give(self, share: Share, job_id: str, siblings: int) -> _Given:
        order = Order(
            job_id=job_id,
            prompt_id=new_prompt_id(),
            kind=OrderKind.REGION.value,
            prompt=prompt_for_follower(self.plan.prompt, self.plan.region, self.plan.births),
            members=(LEADER, share.instance),
            first_items=tuple(share.ranges[index].start for index in share.batches),
            item_counts=tuple(len(share.ranges[index]) for index in share.batches),
            positions={birth.node_id: birth.fan_outs for birth in self.plan.births},
            extra_data=self.plan.extra_data,
        )
        self._begin(job_id)
        given = _Given(share, self._leading.give(share.instance, order))
        for end in self.plan.region.ends:
            given.results[end] = self._result_of(given, end)
        for node_id in self._offers:
            self._send_slices(given, node_id, siblings)
        for node_id in self._broadcasts:
            self._send_broadcast(given, node_id)
        return given

    def _begin(self, job_id: str) -> None:
        if job_id not in self._begun:
            self._begun.add(job_id)
            self._jobs.enter_context(self._cluster.job(job_id))

    def _result_of(self, given: _Given, end: str) -> Handle[Outcome]:
        key = CollectiveKey(given.assignment.order.job_id, end)
        instance = given.share.instance
        received: Handle[Any] = self._cluster.receive_value(key, instance, kind=Kind.FAN_IN)
        given.assignment.finished.add_done_callback(
            lambda finished: self._on_finished(received, finished, end)
        )
        outcome = received.then(lambda values: Outcome((Piece(given.share, _listed(values)),)))
        return outcome.recover(lambda error: self._without(given, end, error))

    def _on_finished(self, received: Handle[Any], finished: Handle[Any], end: str) -> None:
        error = finished.exception()
        if error is None:
            text = f"it ended without a result for {name_of(self.plan.prompt, end)}"
            missing = WorkflowError(f"{received.description}: {text}")
            self._grace.call_later(lambda: received.abandon(missing))
        else:
            received.abandon(error)

    def _without(self, given: _Given, end: str, error: BaseException) -> Handle[Outcome]:
        """What there is of a share whose result did not come."""
        if not isinstance(error, PeerLost):
            return Handle.failed(error)
        share = given.share
        if self._on_lost is OnLost.FAIL:
            return Handle.failed(
                WorkflowError(f"{lost_text(share)} (COMFY_CLUSTER_ON_LOST=fail): {error}")
            )
        if self._on_lost is OnLost.PARTIAL:
            self._warn(f"{lost_text(share)}, and are missing in the result")
            return Handle.completed(Outcome())
        replacement = self._replace(given)
        if not replacement:
            return Handle.completed(Outcome(left=(share,)))
        return all_of([each.results[end] for each in replacement]).then(merged)

    def _replace(self, given: _Given) -> list[_Given]:
        """The followers who do a lost share instead; none: only this instance is left."""
        with self._lock:
            if given.replacement is None and not self._is_closed:
                self._unusable.add(given.share.instance)
                peers = [
                    each for each in self._cluster.connected_peers if each not in self._unusable
                ]
                self._warn(f"{lost_text(given.share)}; done again by {_names(peers)}")
                job_id = f"{self._job_id}/{next(self._rounds)}"
                shares = given.share.over(peers) if peers else []
                given.replacement = [self._give(each, job_id, len(shares)) for each in shares]
            return given.replacement or []

    def warn_of_order(self, end: str, pieces: Sequence[Piece], kind: BatchKind) -> None:
        """Nodes that repeat or drop items: their results come instance by instance."""
        if end in self.plan.mixed_ends and len(pieces) > 1:
            self._warn(mixed_lists_text(self.plan.prompt, end))
        for piece in pieces:
            counts = [len(piece.share.ranges[index]) for index in piece.share.batches]
            try:
                made = [kind.count(value) for value in piece.values]
            except WorkflowError:  # what cannot be counted may still be joined
                return
            if len(made) == len(counts) and made != counts:
                self._warn(
                    f"the region makes {sum(made)} {kind.name} of {sum(counts)}: on one machine "
                    "their order may be another one"
                )
                return

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            logger.warning("! %s", text)

    def _send_slices(self, given: _Given, node_id: str, siblings: int) -> None:
        assert self._sizes is not None
        offer = self._offers[node_id]
        slices = offer.slices_for(given.share, self._sizes)
        for_all = [offer.is_for_all(index, self._sizes) for index in given.share.batches]
        self._send(given, node_id, [for_all, slices], offer.kind.is_image, Kind.FAN_OUT, siblings)

    def _send_broadcast(self, given: _Given, node_id: str) -> None:
        value = self._broadcasts[node_id]
        # Exact, whatever IMAGE_PRECISION says: it may be a latent.
        self._send(given, node_id, value, False, Kind.BROADCAST, len(self._given))

    def _send(
        self, given: _Given, node_id: str, value: Any, is_image: bool, kind: Kind, siblings: int
    ) -> None:
        sent = self._cluster.send_value(
            CollectiveKey(given.assignment.order.job_id, node_id),
            value,
            [given.share.instance],
            kind=kind,
            is_image=is_image,
            siblings=max(1, siblings),
        )
        sent.add_done_callback(lambda done: _on_sent(given.assignment, done))


def _on_sent(assignment: Assignment, sent: Handle[None]) -> None:
    """What cannot be sent fails the work; who is lost, or gave it up, is heard of elsewhere."""
    error = sent.exception()
    if error is not None and not isinstance(error, PeerLost | TransferCancelled):
        assignment.fail(error)


def _are_same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _listed(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise WorkflowError(f"expected a list of results, got {type(values).__name__}")
    return values


def lost_text(share: Share) -> str:
    """Who was lost, and what with, for people."""
    items = ", ".join(
        str(part.start) if len(part) == 1 else f"{part.start} to {part.stop - 1}"
        for part in share.ranges
        if part
    )
    return f"instance {share.instance} was lost with items {items}"


def _names(instances: Sequence[int]) -> str:
    return "instance " + ", ".join(map(str, instances)) if instances else "this instance"
