"""The interpreter's switch interval is short while payloads move, and the host's own otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from comfy_cluster.transport.switch_interval import LINGER, SHORT_INTERVAL, TURNS, SwitchInterval

USUAL = 0.005


class Interpreter:
    def __init__(self) -> None:
        self.interval = USUAL

    def get(self) -> float:
        return self.interval

    def set_to(self, seconds: float) -> None:
        self.interval = seconds


@pytest.fixture
def interpreter() -> Interpreter:
    return Interpreter()


@pytest.fixture
def turns(interpreter: Interpreter) -> SwitchInterval:
    return SwitchInterval(interpreter.get, interpreter.set_to)


@pytest.fixture
def usual_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    TURNS.restore()
    sys.setswitchinterval(before)


def test_interval_is_short_until_payloads_have_been_away_for_a_while(
    interpreter: Interpreter, turns: SwitchInterval
) -> None:
    turns.shorten(10.0)
    assert interpreter.interval == SHORT_INTERVAL
    assert turns.restore_at == 10.0 + LINGER
    turns.shorten(10.0 + LINGER / 2)
    turns.restore_if_due(10.0 + LINGER)
    assert interpreter.interval == SHORT_INTERVAL
    turns.restore_if_due(10.0 + 2 * LINGER)
    assert interpreter.interval == pytest.approx(USUAL, abs=1e-6) and turns.restore_at is None


def test_late_sign_of_a_payload_does_not_end_the_short_interval_sooner(
    turns: SwitchInterval,
) -> None:
    turns.shorten(10.0)
    turns.shorten(9.0)
    assert turns.restore_at == 10.0 + LINGER


def test_interval_that_is_short_already_is_left_alone(
    interpreter: Interpreter, turns: SwitchInterval
) -> None:
    interpreter.interval = SHORT_INTERVAL / 2
    turns.shorten(10.0)
    assert turns.restore_at is None
    turns.restore()
    assert interpreter.interval == SHORT_INTERVAL / 2


def test_interval_that_the_program_changes_meanwhile_stays(
    interpreter: Interpreter, turns: SwitchInterval
) -> None:
    turns.shorten(10.0)
    interpreter.interval = 0.02
    turns.restore()
    assert interpreter.interval == 0.02


@pytest.mark.parametrize("usual", [0.005, 0.0035, 0.05, 0.1])
def test_usual_interval_does_not_drift(usual_interval: None, usual: float) -> None:
    sys.setswitchinterval(usual)
    before = sys.getswitchinterval()
    for _ in range(100):
        TURNS.shorten(0.0)
        TURNS.restore()
    assert sys.getswitchinterval() == before


def test_even_shorter_interval_that_the_program_sets_meanwhile_stays(
    interpreter: Interpreter, turns: SwitchInterval
) -> None:
    turns.shorten(10.0)
    interpreter.interval = SHORT_INTERVAL / 4
    turns.restore()
    assert interpreter.interval == SHORT_INTERVAL / 4


def test_restoring_twice_is_fine(interpreter: Interpreter, turns: SwitchInterval) -> None:
    turns.shorten(10.0)
    turns.restore()
    interpreter.interval = 0.003
    turns.restore()
    assert interpreter.interval == 0.003


def test_real_interpreter_gives_back_what_it_was_given(usual_interval: None) -> None:
    sys.setswitchinterval(USUAL)
    TURNS.shorten(0.0)
    assert sys.getswitchinterval() == pytest.approx(SHORT_INTERVAL)
    TURNS.restore()
    assert sys.getswitchinterval() == pytest.approx(USUAL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_child_of_a_fork_has_the_usual_interval(usual_interval: None) -> None:
    sys.setswitchinterval(USUAL)
    TURNS.shorten(0.0)
    child = os.fork()
    if not child:
        os._exit(0 if sys.getswitchinterval() == pytest.approx(USUAL) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert sys.getswitchinterval() == pytest.approx(SHORT_INTERVAL)
