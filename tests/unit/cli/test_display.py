"""Bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from comfy_cluster.cli.display import Display


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_stage_is_told_and_bars_are_for_terminals(is_terminal: bool) -> None:
    output = io.StringIO()
    display = Display(Console(file=output, force_terminal=is_terminal, width=80))
    with display.stage("Working ...", [("instance 0", 4), ("instance 1", 3)]) as bars:
        bars.show(0, 2)
        bars.show(1, 3)
    text = output.getvalue()
    assert "Working ..." in text
    assert ("2/4" in text) is is_terminal
    assert ("3/3" in text) is is_terminal


def test_notes_are_printed_as_they_are() -> None:
    output = io.StringIO()
    Display(Console(file=output, width=80)).note("a [bold] file.png")
    assert output.getvalue() == "a [bold] file.png\n"
