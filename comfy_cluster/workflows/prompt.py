"""ComfyUI's API prompt: by node id `{"class_type": ..., "inputs": {name: value or link}}`.

A link is `[node id, output index]` (ComfyUI `comfy_execution/graph_utils.py`, `is_link`). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Node = Mapping[str, Any]
Prompt = Mapping[str, Node]
Link = tuple[str, int]


def link_of(value: object) -> Link | None:
    """The link that an input's value is; None for constants."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    source, output = value
    if not isinstance(source, str) or isinstance(output, bool):
        return None
    return (source, int(output)) if isinstance(output, int | float) else None


def links_of(node: Node) -> Iterator[tuple[str, Link]]:
    """Input name and link of each linked input."""
    for name, value in node.get("inputs", {}).items():
        if (link := link_of(value)) is not None:
            yield name, link


def sources_of(node: Node) -> set[str]:
    """Ids of the nodes that this one reads."""
    return {source for _, (source, _) in links_of(node)}


def readers_in(prompt: Prompt) -> dict[str, set[str]]:
    """For each node the ids of those that read it."""
    readers: dict[str, set[str]] = {node_id: set() for node_id in prompt}
    for node_id, node in prompt.items():
        for source in sources_of(node) & readers.keys():
            readers[source].add(node_id)
    return readers


def ancestors_of(prompt: Prompt, node_ids: Iterable[str], *, stops: frozenset[str]) -> set[str]:
    """All that the nodes depend on, without themselves unless they depend on each other.

    What is in `stops` is found, and not looked behind. Links to nothing are left out.
    """
    found: set[str] = set()
    waiting = [source for each in node_ids for source in sources_of(prompt[each])]
    while waiting:
        node_id = waiting.pop()
        if node_id in found or node_id not in prompt:
            continue
        found.add(node_id)
        if node_id not in stops:
            waiting += sources_of(prompt[node_id])
    return found


def plain(prompt: Prompt) -> dict[str, dict[str, Any]]:
    """A copy with what a user gave: ComfyUI notes in the nodes what it finds out as they run.

    Such as `is_changed`: sent to another instance, it would make nodes seem unchanged there.
    """
    return {
        node_id: {key: node[key] for key in ("class_type", "inputs", "_meta") if key in node}
        for node_id, node in prompt.items()
    }


def name_of(prompt: Prompt, node_id: str) -> str:
    """How a user is told of a node: `node 12 (KSampler, "My sampler")`."""
    node = prompt[node_id]
    title = node.get("_meta", {}).get("title", "")
    class_type = str(node.get("class_type", "?"))
    described = class_type if title in ("", class_type) else f'{class_type}, "{title}"'
    return f"node {node_id} ({described})"
