"""A region as a prompt of its own: for a follower, or once more on the leader. Pure.

How it works. In a follower's prompt fan-outs and broadcasts have constants in place of links: they
receive. Its fan-ins are output nodes, and what follows them is left out. A latent that is *born* in
the region, from images (VAEEncode and its like), begins to count its items at 0 on every instance,
and KSampler would draw the first images' noise everywhere; so a node is put behind it that tells
the items' positions in the whole batch (ComfyUI's `batch_index`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from comfy_cluster.workflows.prompt import Link, Prompt, ancestors_of, link_of, links_of
from comfy_cluster.workflows.regions import Region

Nodes = dict[str, dict[str, Any]]

RECEIVED = "comes from the leader"  # a constant in place of a link: ComfyUI's validation takes it
POSITIONS_CLASS = "ClusterFanOutLatent"  # which also tells positions, where the run says so
_LATENT = "LATENT"
_NO_OUTPUT = 10_000  # index of an output: more than any node has


class NodeTypeLike(Protocol):
    """What is asked of a node class; `work.host.NodeType` has it."""

    @property
    def output_types(self) -> Sequence[str]: ...
    @property
    def takes_lists(self) -> bool: ...
    def makes_list(self, output: int) -> bool: ...


NodeTypes = Callable[[str], NodeTypeLike]


@dataclass(frozen=True, slots=True)
class Birth:
    """A latent that is born in a region."""

    link: Link
    fan_outs: tuple[str, ...] = ()
    """Those whose slices it is made of."""

    @property
    def node_id(self) -> str:
        """The node that tells its items' positions."""
        return f"{self.link[0]}.cluster_positions.{self.link[1]}"


def find_births(prompt: Prompt, region: Region, node_types: NodeTypes) -> list[Birth]:
    """Latents that inner nodes make: out of something else, or perhaps without their positions.

    Where a latent tells its positions, telling them again changes nothing. Elements of a list that
    is born in the region have none: on one machine too each of them begins at 0.
    """
    fan_outs = frozenset(region.fan_outs)

    def fan_outs_of(node_id: str) -> tuple[str, ...]:
        return tuple(sorted(ancestors_of(prompt, [node_id], stops=fan_outs) & fan_outs))

    return [
        Birth((node_id, output), fan_outs_of(node_id))
        for node_id in region.inner
        if not makes_list(prompt, region, node_id, node_types)
        for output, kind in enumerate(node_types(prompt[node_id]["class_type"]).output_types)
        if kind == _LATENT
    ]


def makes_list(prompt: Prompt, region: Region, reader: str, node_types: NodeTypes) -> bool:
    """Whether what a node reads is a list that is born in the region, and not the fan-outs' one."""
    links = [link for _, link in links_of(prompt[reader])]
    return any(_is_list(prompt, link, region.inner, node_types) for link in links)


def reader_of_other_list(prompt: Prompt, region: Region, node_types: NodeTypes) -> str | None:
    """A node of the region that reads a list which is not fanned out; None: there is none."""
    upstream = set(region.upstream) - set(region.broadcasts)
    for node_id in (*region.inner, *region.ends):
        for _, link in links_of(prompt[node_id]):
            if link[0] in upstream and _is_list(prompt, link, upstream, node_types):
                return node_id
    return None


def _is_list(prompt: Prompt, link: Link, within: Collection[str], node_types: NodeTypes) -> bool:
    """Whether nodes of `within` make a list of what goes through a link."""
    seen: set[str] = set()
    waiting = [link]
    while waiting:
        source, output = waiting.pop()
        if source not in within or source in seen:
            continue
        node_type = node_types(prompt[source]["class_type"])
        if node_type.makes_list(output):
            return True
        seen.add(source)
        if not node_type.takes_lists:
            waiting += [each for _, each in links_of(prompt[source])]
    return False


def prompt_for_follower(prompt: Prompt, region: Region, births: Sequence[Birth]) -> Nodes:
    """The region and all that it needs, as a follower runs it. Node ids stay."""
    receivers = {*region.fan_outs, *region.broadcasts}
    wanted = [*region.upstream, *region.fan_outs, *region.inner, *region.ends]
    nodes = {
        node_id: _receiving(prompt[node_id]) if node_id in receivers else _copy_of(prompt[node_id])
        for node_id in wanted
    }
    _insert_positions(nodes, births)
    return nodes


def with_positions(prompt: Prompt, births: Sequence[Birth]) -> Nodes:
    """A whole prompt, with the nodes that tell the positions of what is born in it."""
    nodes = {node_id: _copy_of(node) for node_id, node in prompt.items()}
    _insert_positions(nodes, births)
    return nodes


def nodes_for_leader(
    prompt: Prompt,
    region: Region,
    births: Sequence[Birth],
    *,
    end: str,
    prefix: str,
    base: str = "",
) -> Nodes:
    """What leads to one end, once more, for node expansion: ids with a prefix.

    Links to what is upstream stay: ComfyUI has those results, under ids that begin with `base`.
    """
    inside = {*region.fan_outs, *region.inner}
    needed = {end, *(ancestors_of(prompt, [end], stops=frozenset(region.fan_outs)) & inside)}
    nodes = {
        node_id: _receiving(prompt[node_id])
        if node_id in region.fan_outs
        else _copy_of(prompt[node_id])
        for node_id in sorted(needed)
    }
    _insert_positions(nodes, [birth for birth in births if birth.link[0] in needed])
    names = {node_id: prefix + node_id for node_id in nodes}
    return {names[node_id]: _renamed(node, names, base) for node_id, node in nodes.items()}


def _copy_of(node: Any) -> dict[str, Any]:
    return {**node, "inputs": dict(node["inputs"])}


def _receiving(node: Any) -> dict[str, Any]:
    return {**node, "inputs": dict.fromkeys(node["inputs"], RECEIVED)}


def with_prefix(prompt: Prompt, prefix: str) -> Nodes:
    """All nodes of a prompt under longer ids."""
    names = {node_id: prefix + node_id for node_id in prompt}
    return {names[each]: _renamed(_copy_of(node), names, "") for each, node in prompt.items()}


def _renamed(node: dict[str, Any], names: dict[str, str], base: str) -> dict[str, Any]:
    def renamed(value: Any) -> Any:
        link = link_of(value)
        return value if link is None else [names.get(link[0], base + link[0]), link[1]]

    return {**node, "inputs": {name: renamed(value) for name, value in node["inputs"].items()}}


def _insert_positions(nodes: Nodes, births: Sequence[Birth]) -> None:
    """Between each birth and those that read it."""
    telling = {birth.link: birth.node_id for birth in births}
    for node in nodes.values():
        for name, link in list(links_of(node)):
            if link in telling:
                node["inputs"][name] = [telling[link], 0]
    for birth in births:
        source, output = birth.link
        nodes[birth.node_id] = {
            "class_type": POSITIONS_CLASS,
            "inputs": {"latent": [source, output]},
            "_meta": {"title": "positions in the batch"},
        }


def comes_after(node_ids: Iterable[str]) -> dict[str, list[Any]]:
    """Inputs that make a node run after others: links to outputs that none of them has."""
    return {f"after_{index}": [each, _NO_OUTPUT] for index, each in enumerate(node_ids)}


def with_outputs_only(prompt: Prompt, outputs: Collection[str]) -> Nodes:
    """The nodes that some output nodes need, and those; links to nothing are left as they are."""
    known = [each for each in outputs if each in prompt]
    needed = {*known, *ancestors_of(prompt, known, stops=frozenset())}
    return {node_id: dict(node) for node_id, node in prompt.items() if node_id in needed}
