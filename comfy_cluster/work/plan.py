"""A region of a prompt with what is needed to run it, and what comes of its shares. Values.

How it works. A follower runs one prompt at a time. A region whose fan-outs or broadcasts come from
another region's end would wait on followers for what only the prompt behind it could make; so it is
given to them when those ends have their results, and regions that need each other are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from comfy_cluster.errors import WorkflowError
from comfy_cluster.work.host import Host
from comfy_cluster.work.shares import Piece, Share
from comfy_cluster.workflows.broadcasts import LISTEN, broadcast_heard_by
from comfy_cluster.workflows.prompt import Prompt, ancestors_of, name_of, readers_in
from comfy_cluster.workflows.regions import BROADCASTS, ENDS, FAN_OUTS, Region, find_regions
from comfy_cluster.workflows.rewrite import Birth, find_births


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """The same for every run of a prompt."""

    prompt: Prompt
    """Flattened: without ClusterUseSubgraph."""
    region: Region
    births: tuple[Birth, ...]
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    waits_for: tuple[str, ...] = ()
    """Ends of other regions that it comes after."""

    @classmethod
    def without_fan_outs(cls, prompt: Prompt, end: str) -> RegionPlan:
        """An end to which every instance brings what it made by itself."""
        return cls(prompt, Region((), (end,), (), ()), ())

    def with_extra_data(self, extra_data: Mapping[str, Any]) -> RegionPlan:
        """The same, queued with that on followers."""
        return replace(self, extra_data=extra_data)

    @property
    def names(self) -> dict[str, str]:
        """How a user is told of each fan-out."""
        return {each: name_of(self.prompt, each) for each in self.region.fan_outs}


def plan_regions(prompt: Prompt, host: Host) -> list[RegionPlan]:
    """All regions of a flattened prompt. WorkflowError: it cannot run in regions."""
    regions = find_regions(prompt)
    ends = {end: region for region in regions for end in region.ends}
    heard = _with_links_of_listeners(prompt)
    plans = []
    for region in regions:
        given = (*region.fan_outs, *region.broadcasts)
        before = ancestors_of(heard, given, stops=frozenset()) & ends.keys()
        plans.append(
            RegionPlan(
                prompt,
                region,
                tuple(find_births(prompt, region, host.node_type)),
                waits_for=tuple(sorted(before - set(region.ends))),
            )
        )
    _check_order(plans)
    return plans


def fan_outs_before(prompt: Prompt, node_id: str) -> frozenset[str]:
    """Those whose slices a node works on, in a workflow that runs whole.

    If there are none, then those before other ends: who got nothing of them does not get here.
    """
    fan_outs = _of_classes(prompt, FAN_OUTS)
    stops = fan_outs | _of_classes(prompt, BROADCASTS)
    found = ancestors_of(prompt, [node_id], stops=stops | _of_classes(prompt, ENDS)) & fan_outs
    return frozenset(found or ancestors_of(prompt, [node_id], stops=stops) & fan_outs)


def shares_readers(prompt: Prompt, fan_out: str) -> bool:
    """Whether some node works on slices of that fan-out and of another one."""
    stops = _of_classes(prompt, FAN_OUTS | ENDS | BROADCASTS)
    fan_outs = _of_classes(prompt, FAN_OUTS)
    before = (ancestors_of(prompt, [each], stops=stops) & fan_outs for each in prompt)
    return any(fan_out in each and len(each) > 1 for each in before)


def births_in(prompt: Prompt, host: Host) -> list[Birth]:
    """Latents that are born behind fan-outs, in a workflow that runs whole."""
    fan_outs = _of_classes(prompt, FAN_OUTS)
    collectives = _of_classes(prompt, FAN_OUTS | ENDS | BROADCASTS)
    readers = readers_in(prompt)
    inner: set[str] = set()
    waiting = list(fan_outs)
    while waiting:
        new = readers[waiting.pop()] - collectives - inner
        inner |= new
        waiting += new
    region = Region(tuple(sorted(fan_outs)), (), tuple(sorted(inner)), ())
    return find_births(prompt, region, host.node_type)


def _of_classes(prompt: Prompt, classes: frozenset[str]) -> frozenset[str]:
    return frozenset(each for each, node in prompt.items() if node.get("class_type") in classes)


def _with_links_of_listeners(prompt: Prompt) -> Prompt:
    """The prompt as if each listening node read the broadcast that it hears."""
    linked = dict(prompt)
    for node_id, node in prompt.items():
        if node.get("class_type") == LISTEN:
            with contextlib.suppress(WorkflowError):  # which is told when the node runs
                source = broadcast_heard_by(prompt, node_id)
                linked[node_id] = {**node, "inputs": {**node["inputs"], LISTEN: [source, 0]}}
    return linked


def _check_order(plans: Iterable[RegionPlan]) -> None:
    waiting = list(plans)
    while waiting:
        not_done = {end for plan in waiting for end in plan.region.ends}
        still_waiting = [plan for plan in waiting if not_done & set(plan.waits_for)]
        if len(still_waiting) == len(waiting):
            names = ", ".join(name_of(plan.prompt, plan.region.ends[0]) for plan in waiting)
            raise WorkflowError(
                f"the regions that end at {names} need each other's results: no instance could "
                "finish one before the other. Give what comes later a fan-out of its own"
            )
        waiting = still_waiting


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of shares: pieces, and shares that only the leader can still do."""

    pieces: tuple[Piece, ...] = ()
    left: tuple[Share, ...] = ()


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """All of them in one."""
    return Outcome(
        tuple(piece for each in outcomes for piece in each.pieces),
        tuple(share for each in outcomes for share in each.left),
    )
