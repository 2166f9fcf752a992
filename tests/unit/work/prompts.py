"""Prompts for scenarios, in a line a node."""

from __future__ import annotations

from typing import Any

from tests.unit.workflows import prompts

REGION = """
    1 Photographs count={count}
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterFanInImages images=3.0
    5 Save images=4.0
"""


def prompt_of(text: str) -> dict[str, dict[str, Any]]:
    """As for the tests of `workflows/`, with numbers as numbers."""
    prompt = prompts.prompt_of(text)
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value.isdecimal():
                node["inputs"][name] = int(value)
    return prompt


def region(count: int = 8) -> dict[str, dict[str, Any]]:
    """Photographs over the instances, and back."""
    return prompt_of(REGION.format(count=count))
