"""The control thread: commands in order, timers, events, an end that is noticed."""

from __future__ import annotations

import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from comfy_cluster import _fastpath_py
from comfy_cluster.transport.control import ControlThread
from comfy_cluster.transport.engine_threads import EngineThreads
from comfy_cluster.transport.sockets import open_udp_socket
from comfy_cluster.transport.switch_interval import SHORT_INTERVAL

WAIT = 10.0  # seconds; a bound for a broken build, never waited for in a good one


class FakeCore:
    """Counts turns; has events and a timer as the test wants."""

    def __init__(self) -> None:
        self.turns = 0
        self.timer: float | None = None
        self.fired_at: queue.Queue[float] = queue.Queue()
        self.events: list[str] = []
        self.engine_events = 0
        self.is_moving = False
        self.closed_at: float | None = None
        self.turns_until_answered = 0
        self.was_answered_at_close: bool | None = None

    @property
    def has_transfers(self) -> bool:
        return self.is_moving

    @property
    def has_unanswered(self) -> bool:
        return self.turns < self.turns_until_answered

    def handle_engine_events(self, now: float) -> None:
        self.turns += 1

    def handle_timers(self, now: float) -> None:
        if self.timer is not None and now >= self.timer:
            self.timer = None
            self.fired_at.put(now)

    def next_timer(self) -> float | None:
        return 0.0 if self.has_unanswered else self.timer  # a message to be sent again

    def next_event(self) -> str | None:
        return self.events.pop(0) if self.events else None

    def close(self, now: float) -> None:
        self.closed_at = now
        self.was_answered_at_close = not self.has_unanswered
        self.events.append("closed")


class FakeTimed:
    """Has one timer."""

    def __init__(self) -> None:
        self.timer: float | None = None
        self.fired_at: queue.Queue[float] = queue.Queue()

    def next_timer(self) -> float | None:
        return self.timer

    def handle_timers(self, now: float) -> None:
        if self.timer is not None and now >= self.timer:
            self.timer = None
            self.fired_at.put(now)


class Setup:
    def __init__(self) -> None:
        self.timed = FakeTimed()
        self.core = FakeCore()
        self.sock = open_udp_socket("127.0.0.1", 0)
        self.events: queue.Queue[str] = queue.Queue()
        self.failures: queue.Queue[BaseException] = queue.Queue()
        engine = _fastpath_py.PacketEngine()
        self.engine_threads = EngineThreads(engine, self.sock, on_failure=self.failures.put)
        self.control: ControlThread[str] = ControlThread(
            self.core,
            self.engine_threads,
            on_event=self.events.put,
            on_failure=self.failures.put,
            timed=(self.timed,),
        )
        self.engine_threads.start()
        self.control.start()

    def close(self) -> None:
        assert self.control.stop()
        assert self.engine_threads.stop()
        self.sock.close()


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    made.close()


def run(control: ControlThread[str], fn: Callable[[float], object] = lambda now: None) -> object:
    """Has `fn` called on the control thread, and waits for it."""
    answer: queue.Queue[object] = queue.Queue()
    control.post(lambda now: answer.put(fn(now)))
    return answer.get(timeout=WAIT)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_commands_run_in_order_on_the_control_thread(setup: Setup) -> None:
    done: list[int] = []
    for number in range(1000):
        setup.control.post(lambda _, number=number: done.append(number))  # type: ignore[misc]
    name = run(setup.control, lambda _: threading.current_thread().name)
    assert (done, name) == (list(range(1000)), "comfy-cluster-control")
    assert run(setup.control, lambda _: setup.control.is_current) is True
    assert not setup.control.is_current


def test_command_posted_by_a_command_runs(setup: Setup) -> None:
    answer: queue.Queue[str] = queue.Queue()
    setup.control.post(lambda _: setup.control.post(lambda _: answer.put("inner")))
    assert answer.get(timeout=WAIT) == "inner"


def test_events_of_the_core_are_passed_on(setup: Setup) -> None:
    run(setup.control, lambda _: setup.core.events.extend(["a", "b"]))
    assert [setup.events.get(timeout=WAIT) for _ in range(2)] == ["a", "b"]


def test_packet_that_arrives_gives_the_core_a_turn(setup: Setup) -> None:
    run(setup.control)
    before = run(setup.control, lambda _: setup.core.turns)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"noise", setup.sock.getsockname())
    assert isinstance(before, int)
    first = before
    wait_until(lambda: setup.core.turns > first + 1)


def test_python_threads_take_short_turns_only_while_payloads_move(setup: Setup) -> None:
    usual = sys.getswitchinterval()
    assert usual > SHORT_INTERVAL

    def set_moving(is_moving: bool) -> None:
        setup.core.is_moving = is_moving

    run(setup.control, lambda _: set_moving(True))
    wait_until(lambda: sys.getswitchinterval() == pytest.approx(SHORT_INTERVAL))
    run(setup.control, lambda _: set_moving(False))
    wait_until(lambda: sys.getswitchinterval() == pytest.approx(usual))
    run(setup.control, lambda _: set_moving(True))
    wait_until(lambda: sys.getswitchinterval() == pytest.approx(SHORT_INTERVAL))
    assert setup.control.stop()
    assert sys.getswitchinterval() == pytest.approx(usual)
    setup.control.expect_payload()  # by a caller who comes too late: nobody would look at the timer
    assert sys.getswitchinterval() == pytest.approx(usual)


@pytest.mark.parametrize("whose", ["core", "timed"])
def test_timer_fires_when_it_is_due_and_not_before(setup: Setup, whose: str) -> None:
    due = time.monotonic() + 0.03
    owner = setup.core if whose == "core" else setup.timed

    def set_timer(now: float) -> None:
        owner.timer = due

    run(setup.control, set_timer)
    assert owner.fired_at.get(timeout=WAIT) >= due


def test_without_anything_to_do_it_sleeps(setup: Setup) -> None:
    run(setup.control)
    before = run(setup.control, lambda _: setup.core.turns)
    threading.Event().wait(0.2)
    after = run(setup.control, lambda _: setup.core.turns)
    assert isinstance(before, int) and isinstance(after, int)
    assert after - before <= 3


def test_stop_closes_the_core_and_passes_its_last_events_on(setup: Setup) -> None:
    assert setup.control.stop() and setup.control.stop()
    assert setup.core.closed_at is not None
    assert setup.events.get(timeout=WAIT) == "closed"
    assert setup.failures.empty()
    assert "comfy-cluster-control" not in {thread.name for thread in threading.enumerate()}


def test_post_after_stop_is_harmless(setup: Setup) -> None:
    setup.control.stop()
    setup.control.post(lambda _: setup.failures.put(AssertionError("ran after its end")))
    assert setup.failures.empty()


def test_what_a_command_raises_ends_the_thread_and_is_told(setup: Setup) -> None:
    def fail(now: float) -> None:
        raise RuntimeError("a bug")

    setup.control.post(fail)
    assert str(setup.failures.get(timeout=WAIT)) == "a bug"
    assert setup.control.stop()
    assert setup.core.closed_at is None


def test_end_waits_for_the_answers_to_what_was_said_last(setup: Setup) -> None:
    run(setup.control)
    setup.core.turns_until_answered = setup.core.turns + 5
    assert setup.control.stop()
    assert setup.core.was_answered_at_close is True


def test_end_does_not_wait_for_a_peer_that_never_answers(setup: Setup) -> None:
    run(setup.control)
    setup.core.turns_until_answered = sys.maxsize
    assert setup.control.stop()
    assert setup.core.was_answered_at_close is False
