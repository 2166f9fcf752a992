"""Follower processes are watched, named when they end, and never left behind."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

import psutil
import pytest

from comfy_cluster.cli.followers import Followers
from comfy_cluster.errors import PeerLost

# Prints its name, and ends when its input does.
OBEDIENT = "import os, sys; print(os.environ['NAME'], flush=True); sys.stdin.read()"
STUBBORN = "import time; time.sleep(600)"
FAILING = "import os, sys; print('working'); sys.exit('Error: no ' + os.environ['NAME'])"


def followers(code: str, *names: str) -> Followers:
    environs = [{**os.environ, "NAME": name} for name in names]
    return Followers(environs, command=[sys.executable, "-c", code])


Children = Callable[[], list[psutil.Process]]


@pytest.fixture
def children() -> Children:
    """Those that this test started: others keep some for the whole session."""
    others = set(psutil.Process().children())
    return lambda: [each for each in psutil.Process().children() if each not in others]


def wait_for_an_end(team: Followers) -> PeerLost:
    """Checks until a follower has ended."""
    pause = threading.Event()
    with pytest.raises(PeerLost) as raised:
        while not pause.wait(0.01):
            team.check()
    return raised.value


def test_they_end_when_the_context_is_left(children: Children) -> None:
    with followers(OBEDIENT, "a", "b") as team:
        started = children()
        assert len(started) == 2
        team.check()
    assert not any(process.is_running() for process in started)


def test_an_exception_kills_them(children: Children) -> None:
    with pytest.raises(KeyboardInterrupt), followers(STUBBORN, "a", "b"):
        started = children()
        raise KeyboardInterrupt
    assert len(started) == 2
    assert not any(process.is_running() for process in started)


def test_one_that_fails_is_named_with_what_it_wrote() -> None:
    with followers(FAILING, "power") as team:
        error = wait_for_an_end(team)
    assert error.peer == 1
    assert "Instance 1 (process" in str(error)
    assert "ended with exit code 1" in str(error)
    assert "working\nError: no power" in str(error)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no signals")
def test_one_that_is_killed_is_named_with_the_signal(children: Children) -> None:
    with pytest.raises(PeerLost, match="was killed by SIGTERM"), followers(STUBBORN, "a") as team:
        children()[0].terminate()
        raise wait_for_an_end(team)


def test_a_command_that_does_not_exist_leaves_nothing_behind(children: Children) -> None:
    team = Followers([dict(os.environ)], command=["/nonexistent/python"])
    with pytest.raises(FileNotFoundError), team:
        pass
    assert children() == []


def test_a_lost_one_is_explained_by_how_it_ended_or_that_it_has_not() -> None:
    with followers(FAILING, "power") as team:
        explained = team.explained(PeerLost("it left", peer=1))
    assert explained.peer == 1
    assert "ended with exit code 1" in str(explained)
    assert "Error: no power" in str(explained)


def test_a_lost_one_that_still_runs_is_explained_with_what_was_noticed() -> None:
    expected = pytest.raises(PeerLost, match=r"1 .*does not answer any more: silent for 3 s")
    with expected, followers(STUBBORN, "a") as team:
        raise team.explained(PeerLost("silent for 3 s", peer=1))
