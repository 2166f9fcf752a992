"""The values that a node of ComfyUI's page holds, by the names of its inputs.

The page saves them as a list without names, in the order in which it makes the widgets of a node:
required inputs, then optional ones, and behind some an entry that is no input (what becomes of a
seed after each run). Newer pages save the names too. Pure; knows INPUT_TYPES as data only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Types for which the page makes a widget; all others are links only. A list of choices is a COMBO.
_WIDGET_TYPES = frozenset(
    {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "MARKDOWN", "COLOR", "TEXTAREA"}
)
_CONTROL_WORDS = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
_SEEDS = ("seed", "noise_seed")


@dataclass(frozen=True, slots=True)
class Widget:
    """An input that holds a value where nothing is linked to it."""

    name: str
    default: Any = None
    control_count: int = 0
    """Entries behind its own one that are no inputs."""


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
        kind, *rest = specification
        yield name, kind, rest[0] if rest and isinstance(rest[0], Mapping) else {}


def _has_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    if options.get("forceInput"):
        return False
    kind = options.get("widgetType", kind)
    return isinstance(kind, list | tuple) or (isinstance(kind, str) and kind in _WIDGET_TYPES)


def _widget_of(name: str, kind: Any, options: Mapping[str, Any]) -> Widget:
    choices = kind if isinstance(kind, list | tuple) else options.get("options") or ()
    default = options.get("default", choices[0] if choices else None)
    is_controlled = options.get("control_after_generate", kind == "INT" and name in _SEEDS)
    # Behind a choice there is also the text that narrows it.
    control_count = (1 if kind == "INT" else 2) if is_controlled else 0
    return Widget(name, default, control_count)


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
    values = {each.name: saved.get(each.name, each.default) for each in widgets}
    return {name: value for name, value in values.items() if value is not None}


def _names_in(node: Mapping[str, Any]) -> list[str]:
    """Names of the widgets that the file lists among the inputs: newer pages list all of them."""
    return [each["widget"]["name"] for each in node.get("inputs") or () if each.get("widget")]


def _named(values: Sequence[Any], widgets: Sequence[Widget]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    position = 0
    for index, widget in enumerate(widgets):
        if position >= len(values):
            break
        named[widget.name] = values[position]
        position += 1
        to_come = len(widgets) - index - 1
        if _is_control(values[position : position + 1], widget, spare=len(values) > to_come):
            position += max(widget.control_count, 1)
    return named


def _is_control(next_values: Sequence[Any], widget: Widget, *, spare: bool) -> bool:
    """Whether what follows a widget's value is its control: some files were saved without."""
    if not next_values:
        return False
    control = next_values[0]
    # The oldest files have true or false there.
    if not (isinstance(control, bool) or (isinstance(control, str) and control in _CONTROL_WORDS)):
        return False
    return widget.control_count > 0 or (spare and widget.name in _SEEDS)
