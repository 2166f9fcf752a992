"""Workflows as the page saves them, small enough to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Workflow = dict[str, Any]
Node = dict[str, Any]

IMAGE, PREVIEW, NOISE, FAILING, SUBGRAPH, WARNING = 1, 2, 3, 4, 5, 6
"""Node ids."""
SEED = 7
_ORANGE = 0xFF8800
_MAGENTA = 0xFF00FF
"""The tests' failing node takes offence at it."""
_DEFINITION = "6f1d3c1e-55a4-4c07-9d2e-7b8f0a3f6f10"
_SEED_INPUT = {"name": "noise_seed", "type": "INT", "widget": {"name": "noise_seed"}}


def picture() -> Workflow:
    """An image that is shown, and a seed that changes with each run."""
    return _workflow([_image(_ORANGE), _preview(), _noise()], [_link(1, IMAGE, PREVIEW)])


def picture_without_image() -> Workflow:
    """`picture`, whose output lacks its input."""
    return _workflow([_image(_ORANGE), _preview(), _noise()], [])


def failing() -> Workflow:
    """Passes validation, and fails when it runs."""
    node = _node(FAILING, "TestFail", at=(420, 120), values=["", "", True])
    node["inputs"] = [{"name": "images", "type": "IMAGE", "link": None}]
    node["outputs"] = [{"name": "IMAGE", "type": "IMAGE", "links": []}]
    links = [_link(1, IMAGE, FAILING), _link(2, FAILING, PREVIEW)]
    return _workflow([_image(_MAGENTA), node, _preview()], links)


def warning(text: str) -> Workflow:
    """Has the cluster warn of something while it runs."""
    node = _node(WARNING, "TestWarn", at=(420, 120), values=[text])
    return _workflow([_image(_ORANGE), node, _preview()], [_link(1, IMAGE, PREVIEW)])


def seed_in_subgraph() -> Workflow:
    """`picture`, with its seed inside of a subgraph that shows it on its outside."""
    outside = _node(SUBGRAPH, _DEFINITION, at=(100, 420), values=[SEED])
    outside["inputs"] = [{**_SEED_INPUT, "link": None}]
    workflow = _workflow([_image(_ORANGE), _preview(), outside], [_link(1, IMAGE, PREVIEW)])
    return {**workflow, "definitions": {"subgraphs": [_noise_definition()]}}


def _noise_definition() -> dict[str, Any]:
    inside = _noise()
    inside["inputs"] = [{**_SEED_INPUT, "link": 1}]
    link = {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": NOISE, "target_slot": 0}
    shown = {"id": _DEFINITION[:-1] + "1", "name": "noise_seed", "type": "INT", "linkIds": [1]}
    return {
        "id": _DEFINITION,
        "version": 1,
        "revision": 0,
        "name": "Noise",
        "state": {"lastNodeId": 9, "lastLinkId": 9, "lastGroupId": 0, "lastRerouteId": 0},
        "config": {},
        "inputNode": {"id": -10, "bounding": [-200, 420, 120, 60]},
        "outputNode": {"id": -20, "bounding": [700, 420, 120, 60]},
        "inputs": [{**shown, "pos": [-100, 440]}],
        "outputs": [],
        "widgets": [],
        "nodes": [inside],
        "groups": [],
        "links": [{**link, "type": "INT"}],
    }


def _workflow(nodes: Sequence[Node], links: Sequence[list[Any]]) -> Workflow:
    """Nodes of one image input and one image output at most, and links between them."""
    by_id = {node["id"]: node for node in nodes}
    for number, source, _, target, _, _ in links:
        by_id[source]["outputs"][0]["links"].append(number)
        by_id[target]["inputs"][0]["link"] = number
    return {
        "id": "0d5f2a54-7f0d-4b86-8a3f-2f0f3b1c9e77",
        "revision": 0,
        "version": 0.4,
        "last_node_id": 9,
        "last_link_id": 9,
        "nodes": list(nodes),
        "links": list(links),
        "groups": [],
        "config": {},
        "extra": {},
    }


def _node(node_id: int, node_type: str, *, at: tuple[int, int], values: Sequence[Any] = ()) -> Node:
    return {
        "id": node_id,
        "type": node_type,
        "pos": list(at),
        "size": [240, 120],
        "flags": {},
        "order": node_id,
        "mode": 0,
        "properties": {},
        "inputs": [],
        "outputs": [],
        "widgets_values": list(values),
    }


def _image(color: int) -> Node:
    node = _node(IMAGE, "EmptyImage", at=(100, 120), values=[64, 64, 1, color])
    return {**node, "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}]}


def _preview() -> Node:
    node = _node(PREVIEW, "PreviewImage", at=(740, 120))
    return {**node, "inputs": [{"name": "images", "type": "IMAGE", "link": None}]}


def _noise() -> Node:
    node = _node(NOISE, "RandomNoise", at=(100, 420), values=[SEED, "randomize"])
    return {**node, "outputs": [{"name": "NOISE", "type": "NOISE", "links": []}]}


def _link(number: int, source: int, target: int) -> list[Any]:
    return [number, source, 0, target, 0, "IMAGE"]
