"""The control thread: the only one that touches the protocol core, and the clock that drives it.

Other threads hand it commands; it runs them, gives the core what the engine has, fires the core's
timers, and passes the core's events on. It knows no handle and no socket. Used by `transport.py`.
"""

from __future__ import annotations

import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from comfy_cluster.transport.engine_threads import EngineThreads
from comfy_cluster.transport.switch_interval import TURNS
from comfy_cluster.transport.wakeup import WakeUp

STOP_TIMEOUT = 0.8  # seconds; SETTLE_TIMEOUT and a few turns, on a machine that is busy
SETTLE_TIMEOUT = 0.2  # seconds at the end for answers to what was said last; a few round trips

Command = Callable[[float], object]
"""Called with `now` on the control thread; what it raises ends the thread."""

EventT = TypeVar("EventT")
EventT_co = TypeVar("EventT_co", covariant=True)


class Core(Protocol[EventT_co]):
    """What the control thread needs of the protocol core."""

    @property
    def has_unanswered(self) -> bool: ...

    @property
    def has_transfers(self) -> bool: ...

    def handle_engine_events(self, now: float) -> None: ...

    def handle_timers(self, now: float) -> None: ...

    def next_timer(self) -> float | None: ...

    def next_event(self) -> EventT_co | None: ...

    def close(self, now: float) -> None: ...


class Timed(Protocol):
    """Something else with timers, on this thread only."""

    def next_timer(self) -> float | None: ...

    def handle_timers(self, now: float) -> None: ...


class SharedMemoryInput(Protocol):
    """What the control thread waits for and drives beside the engine."""

    def fileno(self) -> int: ...

    def next_timer(self) -> float | None: ...

    def handle_ready(self, now: float) -> None: ...

    def handle_timers(self, now: float) -> None: ...

    def watch(self) -> None: ...


class ControlThread(Generic[EventT]):
    """Runs until `stop`, or until something on it raises."""

    def __init__(
        self,
        core: Core[EventT],
        engine_threads: EngineThreads,
        *,
        on_event: Callable[[EventT], object],
        on_failure: Callable[[BaseException], object],
        shared_memory: SharedMemoryInput | None = None,
        timed: Sequence[Timed] = (),
    ) -> None:
        """Both callbacks are called on this thread; `on_failure(error)` as its last deed."""
        self._shared_memory = shared_memory
        self._timed = timed
        self._core = core
        self._engine_threads = engine_threads
        self._on_event = on_event
        self._on_failure = on_failure
        # A deque and a wake-up that need no lock: the garbage collector posts commands too, and it
        # may come in the middle of any line of any thread.
        self._commands: deque[Command] = deque()
        self._wakeup = WakeUp()
        self._is_stopping = False
        self._has_ended = False
        # What the last wait said. Each look at a socket lets go of the GIL, and where other Python
        # code is busy it takes 5 ms to have it again: nothing is looked at without a reason.
        self._has_wakeup = True
        self._has_shared_input = True
        self._thread = threading.Thread(target=self._run, name="comfy-cluster-control", daemon=True)

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the control thread."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        self._thread.start()

    def post(self, command: Command) -> None:
        """Has `command(now)` run soon, in the order of posting; never if the thread has ended."""
        self._commands.append(command)
        self._wakeup.set()

    def expect_payload(self) -> None:
        """Python threads take short turns from now on, until no payload moves any more."""
        TURNS.shorten(time.monotonic())
        if self._has_ended:  # nobody looks at the timer
            TURNS.restore()

    def stop(self) -> bool:
        """Closes the core and ends the thread; False if it did not end in time. Twice is fine."""
        self._is_stopping = True
        self._wakeup.set()
        if self.is_current:  # called by a listener: the thread ends when that returns
            return False
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT)
            if self._thread.is_alive():
                return False
        self._wakeup.close()
        return True

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wakeup, selectors.EVENT_READ)
                selector.register(self._engine_threads.event_fd, selectors.EVENT_READ)
                if self._shared_memory is not None:
                    selector.register(self._shared_memory, selectors.EVENT_READ)
                while not self._is_stopping:
                    self._turn()
                    self._wait(selector, self._time_left())
                self._settle(selector)
            self._core.close(time.monotonic())
            self._pass_events_on()
        except BaseException as error:  # the top of the thread: it ends, and everything fails
            self._on_failure(error)
        finally:
            self._has_ended = True
            TURNS.restore()

    def _settle(self, selector: selectors.BaseSelector) -> None:
        """Give what was sent last, such as the receipt of a payload, its chance to arrive."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        self._turn()
        while self._core.has_unanswered and (left := deadline - time.monotonic()) > 0:
            due = self._time_left()
            self._wait(selector, left if due is None else min(left, due))
            self._turn()

    def _wait(self, selector: selectors.BaseSelector, timeout: float | None) -> None:
        ready = [key.fileobj for key, _ in selector.select(timeout)]
        self._has_wakeup = self._wakeup in ready
        self._has_shared_input = self._shared_memory in ready

    def _turn(self) -> None:
        if self._has_wakeup:
            self._wakeup.clear()
        self._engine_threads.clear_event_fd()
        for _ in range(len(self._commands)):
            self._commands.popleft()(time.monotonic())
        if self._shared_memory is not None:
            if self._has_shared_input:
                self._shared_memory.handle_ready(time.monotonic())
            self._shared_memory.handle_timers(time.monotonic())
        self._core.handle_engine_events(time.monotonic())
        self._core.handle_timers(time.monotonic())
        for each in self._timed:
            each.handle_timers(time.monotonic())
        if self._core.has_transfers:
            TURNS.shorten(time.monotonic())
        else:
            TURNS.restore_if_due(time.monotonic())
        self._pass_events_on()
        if self._shared_memory is not None:
            self._shared_memory.watch()
        self._engine_threads.wake_sender()

    def _pass_events_on(self) -> None:
        while (event := self._core.next_event()) is not None:
            self._on_event(event)

    def _time_left(self) -> float | None:
        times = [self._core.next_timer(), TURNS.restore_at]
        times += [each.next_timer() for each in self._timed]
        if self._shared_memory is not None:
            times.append(self._shared_memory.next_timer())
        due = min((each for each in times if each is not None), default=None)
        return None if due is None else max(0.0, due - time.monotonic())
