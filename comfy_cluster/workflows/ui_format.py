"""ComfyUI's UI format (what its page saves) as an API prompt, as the page itself makes it.

How it works. A file has a graph: nodes with numbered slots, and links between slots. It may have
definitions of subgraphs, which are graphs with inputs and outputs of their own; each node whose
type is a definition's id stands for a copy of it, whose nodes get the ids "12:34". For each node
that runs, every linked input is followed back to the node, or the value, that it really comes
from: through reroutes, bypassed nodes, and the borders of subgraphs. Muted nodes, notes and
primitives do not run. What the page does at the moment of queueing is not done here: seeds stay as
saved, and texts with `{a|b}` or `%date%` are not replaced. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from comfy_cluster.errors import WorkflowError
from comfy_cluster.workflows.widgets import Widget, values_of

Json = Mapping[str, Any]
Nodes = dict[str, dict[str, Any]]
_MUTED, _BYPASSED = 2, 4
_REROUTE, _PRIMITIVE = "Reroute", "PrimitiveNode"
_NOT_RUN = frozenset({_REROUTE, _PRIMITIVE, "Note", "MarkdownNote"})
# The ids by which links inside of a subgraph name its borders.
_INPUT_BORDER, _OUTPUT_BORDER = "-10", "-20"
_GROUP_NODES = ("workflow>", "workflow/")


class HasWidgets(Protocol):
    """What is needed of a node class."""

    @property
    def widgets(self) -> Sequence[Widget]:
        """In the page's order, see `widgets_of`; empty if the class is not known."""


def is_ui_format(workflow: object) -> bool:
    """Whether this is a file of ComfyUI's page; else it may be a prompt already."""
    return isinstance(workflow, Mapping) and isinstance(workflow.get("nodes"), list)


def to_prompt(workflow: Json, node_types: Callable[[str], HasWidgets]) -> Nodes:
    """The API prompt of a workflow; `node_types` tells of a class by its name.

    `WorkflowError`: the file is broken, or uses what is not supported (group nodes).
    """
    try:
        definitions = {each["id"]: each for each in _definitions_in(workflow)}
        scope = _make_scope(workflow, definitions, path=(), outer=None, user={})
        return dict(_converted(scope, node_types))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise WorkflowError(
            f"the workflow is not as ComfyUI's page saves it: {type(error).__name__}: {error}"
        ) from error


def _definitions_in(workflow: Json) -> Sequence[Json]:
    subgraphs: Sequence[Json] = (workflow.get("definitions") or {}).get("subgraphs") or ()
    return subgraphs


class _Link(NamedTuple):
    origin: str
    origin_slot: int
    target: str
    target_slot: int


class _Constant(NamedTuple):
    value: Any


# A link of the prompt, a value, or nothing.
_Source = list[Any] | _Constant | None


@dataclass(slots=True, eq=False)
class _Scope:
    """A graph at its place: the outermost one, or one use of a subgraph."""

    path: tuple[str, ...]
    """Ids of the nodes that use a subgraph, from the outermost to this one."""
    definition: Json
    """The graph itself."""
    outer: _Scope | None
    user: Json
    """The node of `outer` that stands for this graph."""
    nodes: dict[str, Json] = field(default_factory=dict)
    links: dict[Any, _Link] = field(default_factory=dict)
    inner: dict[str, _Scope] = field(default_factory=dict)
    """The uses of subgraphs in this graph, by node id."""

    def id_of(self, node_id: str) -> str:
        return ":".join((*self.path, node_id))


def _make_scope(
    graph: Json,
    definitions: Mapping[str, Json],
    *,
    path: tuple[str, ...],
    outer: _Scope | None,
    user: Json,
) -> _Scope:
    scope = _Scope(path, graph, outer, user)
    scope.nodes = {str(node["id"]): node for node in graph["nodes"]}
    scope.links = dict(map(_parsed_link, graph.get("links") or ()))
    for node_id, node in scope.nodes.items():
        if str(node["type"]).startswith(_GROUP_NODES):
            raise WorkflowError(
                f"node {scope.id_of(node_id)} ({node['type']}) is a group node, which ComfyUI has "
                "given up: convert it to a subgraph in the page, and save the workflow again"
            )
        if node["type"] in definitions and _runs(node):
            inner_path = (*path, node_id)
            _check_depth(scope, node["type"], inner_path)
            scope.inner[node_id] = _make_scope(
                definitions[node["type"]], definitions, path=inner_path, outer=scope, user=node
            )
    return scope


def _check_depth(scope: _Scope, definition_id: str, path: tuple[str, ...]) -> None:
    outer: _Scope | None = scope
    while outer is not None:
        if outer.definition.get("id") == definition_id and outer.path:
            raise WorkflowError(f"node {':'.join(path)}: the subgraph uses itself")
        outer = outer.outer


def _parsed_link(link: Any) -> tuple[Any, _Link]:
    """Older files have lists, newer ones and subgraphs have objects."""
    if isinstance(link, Mapping):
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
        link = [link[name] for name in names]
    link_id, origin, origin_slot, target, target_slot = link[:5]
    return link_id, _Link(str(origin), int(origin_slot), str(target), int(target_slot))


def _runs(node: Json) -> bool:
    return node.get("mode", 0) not in (_MUTED, _BYPASSED) and node["type"] not in _NOT_RUN


def _converted(
    scope: _Scope, node_types: Callable[[str], HasWidgets]
) -> Iterator[tuple[str, dict[str, Any]]]:
    overrides = _values_from_user(scope)
    for node_id, node in scope.nodes.items():
        if node_id in scope.inner:
            yield from _converted(scope.inner[node_id], node_types)
        elif _runs(node):
            class_type = str(node["type"])
            values = values_of(node, node_types(class_type).widgets)
            values |= overrides.get(node_id, {})
            yield (
                scope.id_of(node_id),
                {
                    "class_type": class_type,
                    "inputs": {name: _wrapped(value) for name, value in values.items()}
                    | _linked_inputs(scope, node),
                    "_meta": {"title": node.get("title") or class_type},
                },
            )


def _values_from_user(scope: _Scope) -> dict[str, dict[str, Any]]:
    """Values that the node which uses a subgraph shows of the nodes inside, by inner node id."""
    overrides: dict[str, dict[str, Any]] = {}
    for node_id, name, value in _shown_values(scope):
        if node_id in scope.nodes:
            overrides.setdefault(node_id, {})[name] = value
    return overrides


def _shown_values(scope: _Scope) -> Iterator[tuple[str, str, Any]]:
    """Inner node id (-1: an input of the subgraph), widget and value that a user's node shows."""
    shown = (scope.user.get("properties") or {}).get("proxyWidgets") or ()
    values = scope.user.get("widgets_values") or ()
    for (node_id, name, *_), value in zip(shown, values, strict=False):
        if value is not None:
            yield str(node_id), str(name), value


def _wrapped(value: Any) -> Any:
    """A list would be taken for a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _linked_inputs(scope: _Scope, node: Json) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for slot, each in enumerate(node.get("inputs") or ()):
        source = _source_of_input(scope, node, slot, wanted=each.get("type"), seen=frozenset())
        if isinstance(source, _Constant):
            inputs[each["name"]] = _wrapped(source.value)
        elif source is not None:
            inputs[each["name"]] = source
    return inputs


def _source_of_input(
    scope: _Scope, node: Json, slot: int, *, wanted: Any, seen: frozenset[str]
) -> _Source:
    """What an input gets: `wanted` is the type of the input that it is finally for."""
    link_id = node["inputs"][slot].get("link")
    if link_id is None or link_id not in scope.links:
        return None
    link = scope.links[link_id]
    if link.origin == _INPUT_BORDER and scope.outer is not None:
        return _source_outside(scope, link.origin_slot, wanted=wanted, seen=seen)
    return _source_of_output(scope, link.origin, link.origin_slot, wanted=wanted, seen=seen)


def _source_outside(
    scope: _Scope, border_slot: int, *, wanted: Any, seen: frozenset[str]
) -> _Source:
    """What the node that uses this subgraph gives to one of its inputs."""
    assert scope.outer is not None
    name = scope.definition["inputs"][border_slot]["name"]
    for slot, each in enumerate(scope.user.get("inputs") or ()):
        if each["name"] == name and each.get("link") is not None:
            return _source_of_input(scope.outer, scope.user, slot, wanted=wanted, seen=seen)
    return _value_of_border(scope, name)


def _value_of_border(scope: _Scope, name: str) -> _Source:
    """The value of a subgraph's input that is a widget of the node which uses it."""
    if shown := list(_shown_values(scope)):
        own = (value for node_id, widget, value in shown if (node_id, widget) == ("-1", name))
        return next(map(_Constant, own), None)
    named = scope.user.get("widgets_values_named") or {}
    if name in named:
        return _Constant(named[name])
    widgets = [each["name"] for each in scope.definition["inputs"] if _is_widget(scope, each)]
    values = scope.user.get("widgets_values") or ()
    if name not in widgets or widgets.index(name) >= len(values):
        return None
    value = values[widgets.index(name)]
    return None if value is None else _Constant(value)


def _is_widget(scope: _Scope, border: Json) -> bool:
    """Whether one of the inner inputs that a subgraph's input leads to holds a value."""
    for link_id in border.get("linkIds") or ():
        if (link := scope.links.get(link_id)) is not None and link.target in scope.nodes:
            inputs = scope.nodes[link.target].get("inputs") or ()
            if link.target_slot < len(inputs) and inputs[link.target_slot].get("widget"):
                return True
    return False


def _source_of_output(
    scope: _Scope, node_id: str, slot: int, *, wanted: Any, seen: frozenset[str]
) -> _Source:
    place = f"{scope.id_of(node_id)}/{slot}"
    if place in seen:
        raise WorkflowError(f"the links at node {scope.id_of(node_id)} go in a circle")
    seen |= {place}
    node = scope.nodes.get(node_id)
    if node is None or node.get("mode", 0) == _MUTED:
        return None
    if node.get("mode", 0) == _BYPASSED:
        passed = _slot_passed_on(node, slot, wanted)
        if passed is None:
            return None
        return _source_of_input(scope, node, passed, wanted=wanted, seen=seen)
    if node_id in scope.inner:
        return _source_inside(scope.inner[node_id], slot, wanted=wanted, seen=seen)
    if node["type"] == _REROUTE:
        return _source_of_input(scope, node, 0, wanted=wanted, seen=seen)
    if node["type"] == _PRIMITIVE:
        values = node.get("widgets_values") or ()
        return _Constant(values[0]) if values else None
    return None if node["type"] in _NOT_RUN else [scope.id_of(node_id), slot]


def _source_inside(scope: _Scope, slot: int, *, wanted: Any, seen: frozenset[str]) -> _Source:
    """What reaches one of the outputs of a subgraph."""
    for link in scope.links.values():
        if link.target == _OUTPUT_BORDER and link.target_slot == slot:
            if link.origin == _INPUT_BORDER:
                return _source_outside(scope, link.origin_slot, wanted=wanted, seen=seen)
            return _source_of_output(scope, link.origin, link.origin_slot, wanted=wanted, seen=seen)
    return None


def _slot_passed_on(node: Json, slot: int, wanted: Any) -> int | None:
    """The input whose value a bypassed node passes on to one of its outputs."""
    types = [each.get("type") for each in node.get("inputs") or ()]
    if not types:
        return None
    if wanted in ("*", "", 0, None):
        return slot if slot < len(types) else 0
    offered = node["outputs"][slot].get("type")

    def fits(index: int) -> bool:
        return _is_same(types[index], offered) and _is_same(types[index], wanted)

    if slot < len(types) and fits(slot):
        return slot
    if wanted in types:
        return types.index(wanted)
    return next((index for index in range(len(types)) if fits(index)), None)


def _is_same(one: Any, other: Any) -> bool:
    """Whether the page would link the two types; a type may be several, with commas between."""
    if any(each in ("*", "", 0, None) for each in (one, other)):
        return True
    one_types, other_types = (set(str(each).lower().split(",")) for each in (one, other))
    return bool(one_types & other_types)
