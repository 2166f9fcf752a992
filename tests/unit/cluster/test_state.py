"""The transition table of an instance's life."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest

from comfy_cluster.cluster.state import (
    TRANSITIONS,
    InstanceInput,
    InstanceState,
    StateMachine,
    mermaid_diagram,
)
from comfy_cluster.errors import LocalProtocolError

# The shortest way to each state, written down apart from the table.
WAY_TO = {
    InstanceState.INITIALIZE: [],
    InstanceState.POPULATING: [InstanceInput.STARTED],
    InstanceState.IDLE: [InstanceInput.STARTED, InstanceInput.ENOUGH_CONNECTED],
    InstanceState.EXECUTING: [
        InstanceInput.STARTED,
        InstanceInput.ENOUGH_CONNECTED,
        InstanceInput.JOB_BEGAN,
    ],
    InstanceState.ERROR: [InstanceInput.FAILED],
}


def machine_in(state: InstanceState) -> StateMachine:
    machine = StateMachine()
    for happened in WAY_TO[state]:
        machine.handle(happened)
    assert machine.state is state
    return machine


@pytest.mark.parametrize("state", InstanceState)
def test_every_state_can_be_reached_and_can_fail(state: InstanceState) -> None:
    machine = machine_in(state)
    assert machine.handle(InstanceInput.FAILED) is InstanceState.ERROR


def test_a_whole_life() -> None:
    machine = machine_in(InstanceState.EXECUTING)
    assert machine.handle(InstanceInput.JOB_ENDED) is InstanceState.IDLE
    assert machine.handle(InstanceInput.JOB_BEGAN) is InstanceState.EXECUTING


@pytest.mark.parametrize(
    ("state", "happened"), list(itertools.product(InstanceState, InstanceInput))
)
def test_illegal_input_raises_and_changes_nothing(
    state: InstanceState, happened: InstanceInput
) -> None:
    machine = machine_in(state)
    if happened in TRANSITIONS[state]:
        assert machine.handle(happened) is TRANSITIONS[state][happened]
        return
    with pytest.raises(LocalProtocolError, match=state.value):
        machine.handle(happened)
    assert machine.state is state


def test_nothing_leads_out_of_error() -> None:
    assert set(TRANSITIONS[InstanceState.ERROR].values()) == {InstanceState.ERROR}


def test_moves_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="comfy_cluster.cluster"):
        StateMachine().handle(InstanceInput.STARTED)
    assert "= INITIALIZE -> POPULATING: started" in caplog.text


def test_diagram_shows_every_move_once() -> None:
    lines = mermaid_diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    moves = [
        f"    {before.value} --> {after.value}: {happened.value}"
        for before, row in TRANSITIONS.items()
        for happened, after in row.items()
    ]
    assert sorted(lines[2:]) == sorted(moves)
    assert "    IDLE --> EXECUTING: first job began" in lines


def test_diagram_in_the_documentation_is_the_table() -> None:
    document = Path(__file__).parents[3] / "docs" / "architecture.md"
    if not document.exists():
        pytest.skip("this copy of the project has no docs/architecture.md")
    assert f"```mermaid\n{mermaid_diagram()}```" in document.read_text(encoding="utf-8")
