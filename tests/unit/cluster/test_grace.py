"""Functions that are called a little later."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from comfy_cluster.cluster.grace import Grace

WAIT = 10.0  # seconds; a bound for a broken build, never waited for in a good one


def test_calls_come_in_order_and_the_thread_goes_when_none_is_due() -> None:
    before = threading.active_count()
    grace = Grace(0.01)
    for _ in range(2):
        calls: list[int] = []
        done = threading.Event()
        for number in range(5):
            grace.call_later(partial(calls.append, number))
        grace.call_later(done.set)
        thread = next(each for each in threading.enumerate() if each.name == "comfy-cluster-grace")
        assert done.wait(WAIT)
        assert calls == [0, 1, 2, 3, 4]
        thread.join(WAIT)
        assert threading.active_count() == before


def test_closing_drops_what_is_due_and_ends_the_thread() -> None:
    before = threading.active_count()
    calls: list[int] = []
    grace = Grace(600.0)
    grace.call_later(lambda: calls.append(1))
    grace.close()
    grace.call_later(lambda: calls.append(2))
    grace.close()
    assert calls == []
    assert threading.active_count() == before


def test_what_is_called_may_close() -> None:
    done = threading.Event()
    grace = Grace(0.0)

    def close() -> None:
        grace.close()
        done.set()

    grace.call_later(close)
    assert done.wait(WAIT)


def test_without_a_thread_to_wait_on_calls_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    grace = Grace(600.0)
    calls: list[int] = []
    with monkeypatch.context() as changed:
        changed.setattr(threading.Thread, "start", start)
        grace.call_later(partial(calls.append, 1))
    assert calls == [1]
    grace.call_later(partial(calls.append, 2))
    grace.close()
    assert calls == [1]
