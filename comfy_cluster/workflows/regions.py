"""Regions: the parts of a workflow that every instance runs on its slice (spec.md section 5A).

How it works. A region begins at fan-outs and ends at the fan-ins and gathers that they lead to.
Fan-outs that lead to one end belong together, and so do ends of one fan-out; nodes on a way from
one to the other are *inner*. What inner nodes read besides the fan-outs is *upstream*: each
follower makes it itself. It is refused where a follower could not: where it would need what only
the leader has, another region's result. Pure; knows nodes by their class, not what they do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from comfy_cluster.errors import WorkflowError
from comfy_cluster.workflows.prompt import (
    Prompt,
    ancestors_of,
    name_of,
    readers_in,
    sources_of,
)

FAN_OUTS = frozenset({"ClusterFanOutImage", "ClusterFanOutLatent", "ClusterFanOutMask"})
FAN_INS = frozenset({"ClusterFanInImages", "ClusterFanInLatents", "ClusterFanInMasks"})
GATHERS = frozenset({"ClusterGatherImages", "ClusterGatherLatents", "ClusterGatherMasks"})
ENDS = FAN_INS | GATHERS
# What the leader sends to all: followers make nothing that only these depend on.
BROADCASTS = frozenset(
    {"ClusterBroadcastTensor", "ClusterBroadcastLoadedImage", "ClusterListenTensorBroadcast"}
)


SENDERS = BROADCASTS - {"ClusterListenTensorBroadcast"}
"""Those that have a value on the leader."""


@dataclass(frozen=True, slots=True)
class Region:
    """Node ids, each tuple sorted."""

    fan_outs: tuple[str, ...]
    ends: tuple[str, ...]
    """Fan-ins and gathers."""
    inner: tuple[str, ...]
    upstream: tuple[str, ...]
    """What followers make themselves: loaders, prompts, constants; and what they receive."""
    broadcasts: tuple[str, ...] = ()
    """Those of `upstream` that are received from the leader."""

    @property
    def name(self) -> str:
        """The same on every instance; no two regions of a prompt share it."""
        return "+".join(self.fan_outs)


def find_regions(prompt: Prompt) -> list[Region]:
    """The regions of a prompt, each before those that depend on it.

    `WorkflowError` where the workflow cannot run in regions; it names the nodes.
    """
    fan_outs = _of_class(prompt, FAN_OUTS)
    ends = _of_class(prompt, ENDS)
    stops = fan_outs | ends | _of_class(prompt, BROADCASTS)
    starts_of = {end: fan_outs & ancestors_of(prompt, [end], stops=stops) for end in ends}
    _check_all_end(prompt, fan_outs, starts_of)
    regions = [
        _make_region(prompt, group, starts_of, stops=stops)
        for group in _groups(fan_outs, starts_of)
    ]
    return sorted(regions, key=lambda region: (_depth(prompt, region, fan_outs), region.name))


def _of_class(prompt: Prompt, classes: Collection[str]) -> frozenset[str]:
    return frozenset(each for each, node in prompt.items() if node.get("class_type") in classes)


def _check_all_end(
    prompt: Prompt, fan_outs: frozenset[str], starts_of: dict[str, frozenset[str]]
) -> None:
    ended = frozenset().union(*starts_of.values())
    if open_ones := sorted(fan_outs - ended):
        raise WorkflowError(
            f"{name_of(prompt, open_ones[0])} leads to no ClusterFanIn or ClusterGather node: "
            "its slices would never come back. Put one behind the nodes that work on the slices"
        )
    for end, starts in sorted(starts_of.items()):
        if not starts:
            raise WorkflowError(
                f"{name_of(prompt, end)} comes after no ClusterFanOut node: there is nothing to "
                'collect. Use "Queue Cluster" to run the whole workflow on every instance'
            )


def _groups(fan_outs: frozenset[str], starts_of: dict[str, frozenset[str]]) -> list[frozenset[str]]:
    """Fan-outs that belong together, because a chain of common ends joins them."""
    groups = [frozenset({each}) for each in fan_outs]
    for starts in starts_of.values():
        joined = [group for group in groups if group & starts]
        groups = [group for group in groups if not group & starts]
        groups.append(frozenset().union(*joined))
    return groups


def _make_region(
    prompt: Prompt,
    group: frozenset[str],
    starts_of: dict[str, frozenset[str]],
    *,
    stops: frozenset[str],
) -> Region:
    """`stops`: all collectives, which nothing is looked for behind."""
    own_ends = frozenset(end for end, starts in starts_of.items() if starts & group)
    before = ancestors_of(prompt, own_ends, stops=stops)
    inner = _behind(prompt, group, within=before - stops)
    upstream = ancestors_of(prompt, inner | own_ends, stops=stops)
    upstream -= inner | group | own_ends
    broadcasts = _of_class(prompt, BROADCASTS) & upstream
    _check_upstream(prompt, inner | own_ends, upstream, stops - broadcasts)
    _check_readers(prompt, inner, allowed=inner | own_ends)
    _check_slices(prompt, group, allowed=inner | own_ends)
    return Region(
        fan_outs=tuple(sorted(group)),
        ends=tuple(sorted(own_ends)),
        inner=tuple(sorted(inner)),
        upstream=tuple(sorted(upstream)),
        broadcasts=tuple(sorted(broadcasts)),
    )


def _behind(prompt: Prompt, starts: Collection[str], *, within: Collection[str]) -> set[str]:
    """Nodes of `within` that depend on `starts`, over nodes of `within`."""
    readers = readers_in(prompt)
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        for reader in readers[waiting.pop()]:
            if reader in within and reader not in found:
                found.add(reader)
                waiting.append(reader)
    return found


def _check_upstream(
    prompt: Prompt, region: Collection[str], upstream: Collection[str], collectives: Collection[str]
) -> None:
    """What followers must make themselves may not come from a collective of the leader."""
    for node_id in sorted(set(upstream) & set(collectives)):
        readers = set(region) | set(upstream)
        reader = min(each for each in readers if node_id in sources_of(prompt[each]))
        raise WorkflowError(
            f"{name_of(prompt, reader)} reads {name_of(prompt, node_id)}, whose result only the "
            "leader has. Put a ClusterBroadcastTensor node between the two, or fan it out too"
        )


def _check_readers(prompt: Prompt, inner: Collection[str], *, allowed: Collection[str]) -> None:
    readers = readers_in(prompt)
    for node_id in sorted(inner):
        for reader in sorted(readers[node_id] - set(allowed)):
            raise WorkflowError(
                f"{name_of(prompt, reader)} reads {name_of(prompt, node_id)}, which works on a "
                "slice of the batch. Connect it behind the ClusterFanIn node, or behind a fan-in "
                "of its own"
            )


def _check_slices(prompt: Prompt, fan_outs: Collection[str], *, allowed: Collection[str]) -> None:
    readers = readers_in(prompt)
    for node_id in sorted(fan_outs):
        for reader in sorted(readers[node_id] - set(allowed)):
            raise WorkflowError(
                f"{name_of(prompt, reader)} reads a slice of {name_of(prompt, node_id)}, and leads "
                "to no ClusterFanIn node. Read the batch before the fan-out instead"
            )


def _depth(prompt: Prompt, region: Region, fan_outs: frozenset[str]) -> int:
    """Fan-outs that this region's own ones depend on: a region comes after those it needs."""
    return len(ancestors_of(prompt, region.fan_outs, stops=frozenset()) & fan_outs)
