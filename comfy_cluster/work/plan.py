"""A region of a prompt with what is needed to run it, and what comes of its shares. Values.

How it works. A follower runs one prompt at a time. A region whose fan-outs or broadcasts come from
another region's end would wait on followers for what only the prompt behind it could make; so it is
given to them when those ends have their results, and regions that need each other are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from comfy_cluster.errors import WorkflowError
from comfy_cluster.work.host import Host
from comfy_cluster.work.shares import Piece, Share
from comfy_cluster.workflows.broadcasts import LISTEN, broadcast_heard_by
from comfy_cluster.workflows.prompt import Prompt, ancestors_of, name_of, readers_in
from comfy_cluster.workflows.regions import BROADCASTS, ENDS, FAN_OUTS, Region, find_regions
from comfy_cluster.workflows.rewrite import Birth, find_births, makes_list, reader_of_other_list


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
    other_list: str | None = None
    """A node that reads a list which is not fanned out."""
    mixed_ends: tuple[str, ...] = ()
    """Ends that get lists within such a list: one machine strings them together in another order
    than instance by instance."""

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
        other_list = reader_of_other_list(prompt, region, host.node_type)
        lists = [end for end in region.ends if makes_list(prompt, region, end, host.node_type)]
        plans.append(
            RegionPlan(
                prompt,
                region,
                tuple(find_births(prompt, region, host.node_type)),
                waits_for=tuple(sorted(before - set(region.ends))),
                other_list=other_list,
                mixed_ends=() if other_list is None else tuple(lists),
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
    return find_births(prompt, _behind(prompt, _of_classes(prompt, FAN_OUTS)), host.node_type)


def other_list_behind(prompt: Prompt, fan_out: str, host: Host) -> str | None:
    """`RegionPlan.other_list` of what is behind one fan-out, in a workflow that runs whole."""
    return reader_of_other_list(prompt, _behind(prompt, {fan_out}), host.node_type)


def other_list_text(prompt: Prompt, reader: str) -> str:
    """What is wrong with a list that is cut beside another one, for people."""
    return (
        f"a list of several batches is fanned out, of which instances get some, and "
        f"{name_of(prompt, reader)} reads another list: ComfyUI pairs the elements of lists by "
        "their place, which would be another one on each instance. Fan the other list out too, or "
        "join the batches to one before the fan-out"
    )


def mixed_lists_text(prompt: Prompt, end: str) -> str:
    """What a user is told of one of `RegionPlan.mixed_ends`."""
    return (
        f"{name_of(prompt, end)} gets lists that nodes of the region make of each element of "
        "another list: on one machine their order may be another one"
    )


def _behind(prompt: Prompt, fan_outs: Collection[str]) -> Region:
    """Everything behind fan-outs up to the next collectives, and what that reads besides."""
    collectives = _of_classes(prompt, FAN_OUTS | ENDS | BROADCASTS)
    readers = readers_in(prompt)
    inner: set[str] = set()
    waiting = list(fan_outs)
    while waiting:
        new = readers[waiting.pop()] - collectives - inner
        inner |= new
        waiting += new
    upstream = ancestors_of(prompt, inner, stops=collectives) - inner - collectives
    return Region(tuple(sorted(fan_outs)), (), tuple(sorted(inner)), tuple(sorted(upstream)))


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
