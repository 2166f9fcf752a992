"""The values that a node of ComfyUI's page holds, by the names of its inputs.

The page saves them as a list without names, in the order in which it makes the widgets of a node:
required inputs, then optional ones, and behind some an entry that is no input (what becomes of a
seed after each run). Newer pages save the names too. Pure; knows INPUT_TYPES as data only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Types for which the page makes a widget; all others are links only. A list of choices is a COMBO.
_WIDGET_TYPES = frozenset(
    {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "MARKDOWN", "COLOR", "TEXTAREA"}
)
_CONTROL_WORDS = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
_SEEDS = ("seed", "noise_seed")
# A choice that brings inputs of its own, named "choice.input" (ComfyUI 0.4 and later).
_DYNAMIC_CHOICE = "COMFY_DYNAMICCOMBO_V3"


@dataclass(frozen=True, slots=True)
class Widget:
    """An input that holds a value where nothing is linked to it."""

    name: str
    default: Any = None
    control_count: int = 0
    """Entries behind its own one that are no inputs."""
    children: Mapping[str, tuple[Widget, ...]] = field(default_factory=dict)
    """By chosen value the widgets that come behind it then."""


def widgets_of(input_types: Mapping[str, Mapping[str, Any]]) -> tuple[Widget, ...]:
    """The widgets of a node class, from what its INPUT_TYPES() returns."""
    return tuple(
        _widget_of(name, kind, options)
        for section in ("required", "optional")
        for name, kind, options in _specifications(input_types.get(section) or {})
        if _has_widget(kind, options)
    )


def _specifications(section: Mapping[str, Any]) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    for name, specification in section.items():
        if not isinstance(specification, list | tuple) or not specification:
            continue  # some node pack's mistake
        kind, *rest = specification
        # A plain text: node packs have types that say they are equal to everything.
        kind = str(kind) if isinstance(kind, str) else kind
        yield name, kind, rest[0] if rest and isinstance(rest[0], Mapping) else {}


def _has_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    if options.get("forceInput"):
        return False
    kind = options.get("widgetType", kind)
    is_named = isinstance(kind, str) and (kind in _WIDGET_TYPES or kind == _DYNAMIC_CHOICE)
    return is_named or isinstance(kind, list | tuple)


def _widget_of(name: str, kind: Any, options: Mapping[str, Any]) -> Widget:
    if kind == _DYNAMIC_CHOICE:
        return _dynamic_choice(name, options)
    choices = kind if isinstance(kind, list | tuple) else options.get("options") or ()
    default = options.get("default", choices[0] if choices else None)
    is_controlled = options.get("control_after_generate", kind == "INT" and name in _SEEDS)
    # Behind a choice there is also the text that narrows it.
    control_count = (1 if kind == "INT" else 2) if is_controlled else 0
    return Widget(name, default, control_count)


def _dynamic_choice(name: str, options: Mapping[str, Any]) -> Widget:
    children = {
        str(each.get("key")): tuple(
            replace(child, name=f"{name}.{child.name}")
            for child in widgets_of(each.get("inputs") or {})
        )
        for each in options.get("options") or ()
    }
    return Widget(name, options.get("default", next(iter(children), None)), children=children)


def values_of(node: Mapping[str, Any], widgets: Sequence[Widget]) -> dict[str, Any]:
    """The values that a saved node holds, also of widgets that something is linked to.

    What the file lacks gets its default. Without `widgets` (the class is not known) the names that
    the file itself has are used.
    """
    saved = node.get("widgets_values_named") or node.get("widgets_values") or ()
    if not isinstance(saved, Mapping):
        saved = _named(saved, widgets or [Widget(name) for name in _names_in(node)])
    if not widgets:
        known = set(_names_in(node))
        return {name: value for name, value in saved.items() if name in known}
    return dict(_chosen(saved, widgets))


def _chosen(saved: Mapping[str, Any], widgets: Sequence[Widget]) -> Iterator[tuple[str, Any]]:
    for each in widgets:
        value = saved.get(each.name, each.default)
        if value is not None:
            yield each.name, value
            yield from _chosen(saved, each.children.get(str(value), ()))


def _names_in(node: Mapping[str, Any]) -> list[str]:
    """Names of the widgets that the file lists among the inputs: newer pages list all of them."""
    return [each["widget"]["name"] for each in node.get("inputs") or () if each.get("widget")]


def _named(values: Sequence[Any], widgets: Sequence[Widget]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    to_come = list(widgets)
    position = 0
    while to_come and position < len(values):
        widget = to_come.pop(0)
        named[widget.name] = values[position]
        to_come[:0] = widget.children.get(str(values[position]), ())
        position += 1
        position += _control_count(values[position:], widget, to_come)
    return named


def _control_count(rest: Sequence[Any], widget: Widget, to_come: Sequence[Widget]) -> int:
    """Entries behind a widget's value that are no inputs: some files were saved without any.

    The oldest ones have true or false there. Where more entries are left than widgets, and say what
    controls say, they are some that the page has left behind, or the class is not known.
    """
    count = 0
    if rest and (isinstance(rest[0], bool) or _is_control_word(rest[0])):
        count = widget.control_count
    needed = sum(1 + each.control_count for each in to_come)
    while len(rest) - count > needed and _is_control_word(rest[count]):
        count += 1
    return count


def _is_control_word(value: Any) -> bool:
    return isinstance(value, str) and value in _CONTROL_WORDS
