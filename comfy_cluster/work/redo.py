"""Shares of lost instances that the leader does itself, by node expansion.

How it works. In place of an end's result ComfyUI gets copies of the region's nodes. The copies of
fan-outs have the lost slices, the copy of the end joins what they lead to with the results that are
there; if several shares are left, it expands once more. Of the list that an expansion ends in,
ComfyUI takes the elements apart, so that one more node makes one value of it. Used by the leader's
runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from comfy_cluster.errors import WorkflowError
from comfy_cluster.work.host import Host
from comfy_cluster.work.kinds import Allocate, BatchKind, with_positions
from comfy_cluster.work.plan import Outcome, RegionPlan
from comfy_cluster.work.run import Expansion, NodeCall
from comfy_cluster.work.shares import Piece, Share, join_pieces
from comfy_cluster.workflows.regions import GATHERS
from comfy_cluster.workflows.rewrite import Birth, makes_list, nodes_for_leader
from comfy_cluster.workflows.subgraphs import COLLECTS, USE


class Source(Protocol):
    """Where the lost slices are."""

    @property
    def batch_count(self) -> int:
        """Batches in the list that was fanned out."""

    def slices_of(self, share: Share) -> Mapping[str, list[Any]]:
        """By fan-out the values of a share."""

    def positions_of(self, share: Share, birth: Birth) -> list[range]:
        """By batch of a share the positions of a latent that is born of it."""


@dataclass(frozen=True, slots=True)
class _Redo:
    """What copies of nodes stand for."""

    plan: RegionPlan
    source: Source
    end: str
    share: Share
    outcome: Outcome
    """All else, and the shares that come after this one."""
    slices: Mapping[str, list[Any]]
    """By the copy of a fan-out."""
    positions: Mapping[str, list[range]]
    """By the copy of a node that tells positions: of each batch."""


class Redos:
    """Those of one prompt. Used on ComfyUI's prompt thread only."""

    def __init__(self, host: Host, allocate: Allocate | None = None) -> None:
        """`allocate` gives the memory of joined results: pages that were touched before."""
        self._host = host
        self._allocate = allocate
        self._by_node: dict[str, _Redo] = {}
        self._numbers = itertools.count(1)

    def __contains__(self, node_id: str) -> bool:
        """Whether a node is such a copy."""
        return node_id in self._by_node

    def fan_out(self, node_id: str, values: list[Any]) -> list[Any]:
        """What a copied fan-out gives; one that tells positions gives what it got, and those."""
        redo = self._by_node[node_id]
        if node_id not in redo.positions:
            return redo.slices[node_id]
        return with_positions(values, redo.positions[node_id])

    def fan_in(self, call: NodeCall, kind: BatchKind, values: list[Any]) -> list[Any] | Expansion:
        """What a copied end gives."""
        redo = self._by_node[call.node_id]
        outcome = replace(redo.outcome, pieces=(*redo.outcome.pieces, Piece(redo.share, values)))
        return self.finish(redo.plan, redo.source, redo.end, call, kind, outcome)

    def finish(
        self,
        plan: RegionPlan,
        source: Source,
        end: str,
        call: NodeCall,
        kind: BatchKind,
        outcome: Outcome,
    ) -> list[Any] | Expansion:
        """The joined result; or, while shares are left, the nodes that do the next one here."""
        if outcome.left:
            return self._expand(plan, source, end, call, outcome)
        is_list = makes_list(plan.prompt, plan.region, end, self._host.node_type)
        if not plan.region.fan_outs:  # nothing says how long the lists of the instances should be
            is_list = any(len(piece.values) != 1 for piece in outcome.pieces)
        count = source.batch_count
        if plan.prompt[end]["class_type"] not in GATHERS:
            return join_pieces(
                outcome.pieces,
                kind,
                batch_count=count,
                makes_list=is_list,
                allocate=self._allocate,
            )
        ordered = sorted(outcome.pieces, key=Piece.order)
        return [
            value
            for piece in ordered
            for value in join_pieces([piece], kind, batch_count=count, makes_list=is_list)
        ]

    def _expand(
        self, plan: RegionPlan, source: Source, end: str, call: NodeCall, outcome: Outcome
    ) -> Expansion:
        share, *others = outcome.left
        if not self._host.can_expand:
            raise WorkflowError(
                f"instance {share.instance} was lost, and its items cannot be done again here: "
                "this ComfyUI runs with --cache-none, which has no node expansion"
            )
        prefix = f"{call.node_id}.redo{next(self._numbers)}."
        nodes = nodes_for_leader(
            plan.prompt,
            plan.region,
            plan.births,
            end=end,
            prefix=call.prefix + prefix,
            base=call.prefix,
        )
        redo = _Redo(
            plan=plan,
            source=source,
            end=end,
            share=share,
            outcome=replace(outcome, left=tuple(others)),
            slices={prefix + each: values for each, values in source.slices_of(share).items()},
            positions={
                prefix + birth.node_id: source.positions_of(share, birth) for birth in plan.births
            },
        )
        for node_id in (*redo.slices, *redo.positions, prefix + end):
            self._by_node[node_id] = redo
        copied_end = call.prefix + prefix + end
        collector = {"class_type": USE, "inputs": {"input": [copied_end, 0], COLLECTS: True}}
        return Expansion({**nodes, f"{copied_end}.list": collector}, [f"{copied_end}.list", 0])

    def clear(self) -> None:
        """Lets go of the slices."""
        self._by_node.clear()
