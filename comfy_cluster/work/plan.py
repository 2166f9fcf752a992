"""A region of a prompt with what is needed to run it, and what comes of its shares. Values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from comfy_cluster.work.host import Host
from comfy_cluster.work.shares import Piece, Share
from comfy_cluster.workflows.prompt import Prompt, name_of
from comfy_cluster.workflows.regions import Region, find_regions
from comfy_cluster.workflows.rewrite import Birth, find_births


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """The same for every run of a prompt."""

    prompt: Prompt
    """Flattened: without ClusterUseSubgraph."""
    region: Region
    births: tuple[Birth, ...]
    extra_data: Mapping[str, Any] = field(default_factory=dict)

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
    return [
        RegionPlan(prompt, region, tuple(find_births(prompt, region, host.node_type)))
        for region in find_regions(prompt)
    ]


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
