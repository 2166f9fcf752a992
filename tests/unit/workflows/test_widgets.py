"""The widgets of a node class, in the page's order."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_cluster.workflows.widgets import Widget, values_of, widgets_of


def test_required_come_before_optional_and_links_are_none() -> None:
    input_types: dict[str, dict[str, Any]] = {
        "optional": {"strength": ("FLOAT", {"default": 0.5}), "mask": ("MASK",)},
        "required": {"image": ("IMAGE",), "text": ("STRING", {"multiline": True})},
        "hidden": {"unique_id": "UNIQUE_ID"},
    }
    assert widgets_of(input_types) == (Widget("text"), Widget("strength", 0.5))


def test_a_choice_is_the_first_one_by_default() -> None:
    input_types = {
        "required": {
            "old": (["a", "b"],),
            "new": ("COMBO", {"options": ["c", "d"]}),
            "told": (["a", "b"], {"default": "b"}),
            "empty": ([],),
        }
    }
    expected = (Widget("old", "a"), Widget("new", "c"), Widget("told", "b"), Widget("empty"))
    assert widgets_of(input_types) == expected


def test_seeds_and_controlled_values_have_more_entries() -> None:
    control = {"control_after_generate": True}
    input_types = {
        "required": {
            "seed": ("INT", {"default": 0}),
            "noise_seed": ("INT", {"control_after_generate": False}),
            "value": ("INT", control),
            "name": (["a"], control),
        }
    }
    assert [each.control_count for each in widgets_of(input_types)] == [1, 0, 1, 2]


def test_an_input_that_is_forced_to_be_a_link_is_no_widget() -> None:
    assert widgets_of({"required": {"count": ("INT", {"forceInput": True})}}) == ()


def test_the_page_may_be_told_another_widget() -> None:
    assert widgets_of({"required": {"value": ("COLOUR", {"widgetType": "STRING"})}})


def test_values_by_name() -> None:
    """Some node packs save a dict."""
    node = {"widgets_values": {"frame_rate": 8, "videopreview": {"hidden": False}}}
    widgets = (Widget("frame_rate", 24), Widget("loop_count", 0))
    assert values_of(node, widgets) == {"frame_rate": 8, "loop_count": 0}


def test_the_filter_of_a_controlled_choice_is_skipped_too() -> None:
    widgets = (Widget("name", "a", control_count=2), Widget("strength", 1.0))
    node = {"widgets_values": ["b", "increment", "", 0.25]}
    assert values_of(node, widgets) == {"name": "b", "strength": 0.25}


class EqualToAll(str):
    """What some node packs have for "any type"."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


def test_a_type_that_is_equal_to_all_is_a_link() -> None:
    assert widgets_of({"required": {"seed": (EqualToAll("*"),)}}) == ()


def test_what_is_no_specification_is_left_out() -> None:
    odd: dict[str, Any] = {"required": {"a": "INT", "b": (), "c": None, "d": ("INT",)}}
    assert widgets_of(odd) == (Widget("d"),)


# What the page of 1.58.1 saves of such a node (its "mode" was "size" when it was made).
DYNAMIC = {
    "required": {
        "before": ("INT", {"default": 3}),
        "mode": (
            "COMFY_DYNAMICCOMBO_V3",
            {
                "options": [
                    {
                        "key": "size",
                        "inputs": {
                            "required": {
                                "width": ("INT", {"default": 5}),
                                "seed": ("INT", {"default": 1}),
                            }
                        },
                    },
                    {
                        "key": "scale",
                        "inputs": {
                            "required": {"factor": ("FLOAT", {"default": 0.5})},
                            "optional": {"how": (["a", "b"],)},
                        },
                    },
                ]
            },
        ),
        "after": ("STRING", {"default": "x"}),
    }
}


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (
            [9, "size", 7, 1, "randomize", "z"],
            {"before": 9, "mode": "size", "mode.width": 7, "mode.seed": 1, "after": "z"},
        ),
        (
            [9, "scale", 7, "b", "randomize", "z"],
            {"before": 9, "mode": "scale", "mode.factor": 7, "mode.how": "b", "after": "z"},
        ),
        ([], {"before": 3, "mode": "size", "mode.width": 5, "mode.seed": 1, "after": "x"}),
    ],
    ids=str,
)
def test_a_choice_that_brings_inputs_of_its_own(saved: list[Any], expected: dict[str, Any]) -> None:
    assert values_of({"widgets_values": saved}, widgets_of(DYNAMIC)) == expected
    named = {"widgets_values_named": {**expected, "control_after_generate": "fixed"}}
    assert values_of(named, widgets_of(DYNAMIC)) == expected
