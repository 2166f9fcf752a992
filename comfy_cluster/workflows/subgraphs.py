"""Reusable parts: ClusterStartSubgraph ... ClusterEndSubgraph, and ClusterUseSubgraph.

How it works. The nodes on a way from a start to its end are the *body*. Each use stands for a copy
of the body: in it what reads the start reads the use's input, and who reads the use reads what the
end reads. What a body reads besides its start is not copied: loaders and prompts are shared by all
uses. A use inside a body is a use in each copy. `expand_in_place` is for the node itself, which
ComfyUI expands while it runs; `expand_all` for what has to see a prompt whole beforehand. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_cluster.errors import WorkflowError
from comfy_cluster.workflows.prompt import (
    Link,
    Prompt,
    ancestors_of,
    link_of,
    name_of,
    readers_in,
)

START = "ClusterStartSubgraph"
END = "ClusterEndSubgraph"
USE = "ClusterUseSubgraph"
# Marks a use that stands for nothing, and makes one value of the list that it reads.
COLLECTS = "collects"
Nodes = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Subgraph:
    """One reusable part of a prompt."""

    start: str
    end: str
    body: frozenset[str]
    """Ids of the nodes between the two."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """What a use stands for."""

    nodes: Nodes
    """Copies, by ids that begin with the use's own."""
    output: Any
    """The link, or the constant, that readers of the use read."""
    end: str
    """The id that a copy of the end would have: it is free."""


def find_subgraph(prompt: Prompt, subgraph_id: str, *, wanted_by: str) -> Subgraph:
    """The part of that id; `WorkflowError` that names node `wanted_by` if there is not one."""
    starts = sorted(
        each
        for each, node in prompt.items()
        if node.get("class_type") == START and node["inputs"].get("subgraph_id") == subgraph_id
    )
    user = name_of(prompt, wanted_by)
    if not starts:
        known = ", ".join(repr(each) for each in _known_ids(prompt)) or "none"
        raise WorkflowError(
            f"{user}: there is no {START} with subgraph_id {subgraph_id!r} (there are: {known})"
        )
    if len(starts) > 1:
        names = ", ".join(name_of(prompt, each) for each in starts)
        raise WorkflowError(f"{user}: subgraph_id {subgraph_id!r} is used by several: {names}")
    return _subgraph_from(prompt, starts[0])


def _known_ids(prompt: Prompt) -> list[str]:
    return sorted(
        str(node["inputs"].get("subgraph_id"))
        for node in prompt.values()
        if node.get("class_type") == START
    )


def _subgraph_from(prompt: Prompt, start: str) -> Subgraph:
    behind = _descendants_of(prompt, start)
    ends = sorted(each for each in behind if prompt[each].get("class_type") == END)
    if len(ends) != 1:
        found = ", ".join(name_of(prompt, each) for each in ends) or "none"
        raise WorkflowError(
            f"{name_of(prompt, start)} must lead to one {END} node; it leads to: {found}"
        )
    before = ancestors_of(prompt, ends, stops=frozenset({start}))
    return Subgraph(start, ends[0], frozenset((behind - set(ends)) & before))


def _descendants_of(prompt: Prompt, start: str) -> set[str]:
    """All that depends on a node, up to the first ends."""
    readers = readers_in(prompt)
    found: set[str] = set()
    waiting = [start]
    while waiting:
        node_id = waiting.pop()
        if node_id != start and prompt[node_id].get("class_type") == END:
            continue
        new = readers[node_id] - found
        found |= new
        waiting += new
    return found


def expand_use(prompt: Prompt, use: str) -> Expansion:
    """The copy of the body that node `use` stands for.

    `WorkflowError`: see `find_subgraph`; and where the part uses itself.
    """
    inputs = prompt[use]["inputs"]
    subgraph_id = inputs.get("subgraph_id")
    if not isinstance(subgraph_id, str):
        raise WorkflowError(f"{name_of(prompt, use)}: subgraph_id must be a text, not a link")
    subgraph = find_subgraph(prompt, subgraph_id, wanted_by=use)
    _check_recursion(prompt, use)
    given = inputs.get("input")

    def moved(value: Any) -> Any:
        link = link_of(value)
        if link is None:
            return value
        return given if link[0] == subgraph.start else _moved_link(link, subgraph, use)

    nodes = {_copy_id(use, node_id): _copy_of(prompt[node_id], moved) for node_id in subgraph.body}
    output = moved(prompt[subgraph.end]["inputs"].get("input"))
    return Expansion(nodes, output, _copy_id(use, subgraph.end))


def _moved_link(link: Link, subgraph: Subgraph, use: str) -> list[Any]:
    source, output = link
    return [_copy_id(use, source) if source in subgraph.body else source, output]


def _copy_id(use: str, node_id: str) -> str:
    return f"{use}.{node_id}"


def _copy_of(node: Mapping[str, Any], moved: Any) -> dict[str, Any]:
    inputs = {name: moved(value) for name, value in node["inputs"].items()}
    return {**node, "inputs": inputs}


def _check_recursion(prompt: Prompt, use: str, outer: tuple[str, ...] = ()) -> None:
    """Copies keep their subgraph_id, so this can be told before any of them is made."""
    subgraph_id = prompt[use]["inputs"].get("subgraph_id")
    if not isinstance(subgraph_id, str):
        return
    path = (*outer, subgraph_id)
    if subgraph_id in outer:
        raise WorkflowError(f"{name_of(prompt, use)}: the subgraph uses itself: {' > '.join(path)}")
    for each in sorted(find_subgraph(prompt, subgraph_id, wanted_by=use).body):
        if _stands_for_a_body(prompt[each]):
            _check_recursion(prompt, each, path)


def _stands_for_a_body(node: Mapping[str, Any]) -> bool:
    return node.get("class_type") == USE and not _collects(node)


def _collects(node: Mapping[str, Any]) -> bool:
    return COLLECTS in node.get("inputs", {})


def expand_in_place(prompt: Prompt, use: str) -> Expansion:
    """`expand_use` as ComfyUI's node expansion needs it.

    Of a list that an expansion ends in, ComfyUI hands on the first element only. So another node
    makes one value of the list, which the use then returns as its list.
    """
    expansion = expand_use(prompt, use)
    collector = {"class_type": USE, "inputs": {"input": expansion.output, COLLECTS: True}}
    nodes = {**expansion.nodes, expansion.end: collector}
    return Expansion(nodes, [expansion.end, 0], expansion.end)


def expand_all(prompt: Prompt) -> Nodes:
    """The prompt with every use replaced by what it stands for, also inside of those.

    `WorkflowError` for unknown ids, and where a part uses itself.
    """
    expanded: Nodes = {
        node_id: dict(node) for node_id, node in prompt.items() if not _collects(node)
    }
    while (use := _first_use(expanded)) is not None:
        expansion = expand_use(expanded, use)
        del expanded[use]
        expanded |= expansion.nodes
        _redirect(expanded, use, expansion.output)
    return expanded


def _first_use(prompt: Prompt) -> str | None:
    return min((each for each, node in prompt.items() if _stands_for_a_body(node)), default=None)


def _redirect(prompt: Nodes, use: str, output: Any) -> None:
    for node_id, node in prompt.items():
        links = {name: link_of(value) for name, value in node["inputs"].items()}
        if any(link is not None and link[0] == use for link in links.values()):
            inputs = {
                name: output if (link := links[name]) is not None and link[0] == use else value
                for name, value in node["inputs"].items()
            }
            prompt[node_id] = {**node, "inputs": inputs}
