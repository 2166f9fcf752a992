"""The handle: what a caller holds while something happens on other threads.

It can be waited for in a blocking way (`result`), awaited on any event loop, asked, cancelled,
and combined (`then`, `and_then`, `all_of`, ...). It knows nothing of transfers, sockets or threads:
the owner of the work fulfils it with `set_result` or `set_exception`, from any thread.

Used by transport/ and the layers above it.

How it works: a `concurrent.futures.Future` holds the outcome, and only ever the two outcomes
*result* and *exception*. Cancelling is the exception `TransferCancelled`, never one of Python's
`CancelledError`s: one that leaks out of a node as `asyncio.CancelledError` kills ComfyUI's prompt
worker. The first outcome wins; later ones are refused with False, so that an owner who comes too
late knows that nobody will take what it brings. Handles hold tensors of hundreds of megabytes, so
nothing here forms a reference cycle around a result: callbacks are dropped once they were called.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent import futures
from typing import Any, Generic, Protocol, TypeVar

from comfy_cluster.errors import TransferCancelled, TransferTimeout

logger = logging.getLogger("comfy_cluster.transport")

T = TypeVar("T")
U = TypeVar("U")


class Executor(Protocol):
    """What `then` needs of a thread pool."""

    def submit(self, fn: Callable[[], None], /, *, on_dropped: Callable[[str], object]) -> object:
        """Runs `fn` on another thread, soon. RuntimeError: it never will.

        If the pool closes before it has come to `fn`, it calls `on_dropped(reason)` instead:
        whoever waits for what `fn` brings would wait for ever.
        """


class Handle(Generic[T]):
    """The future outcome of one piece of work. Thread-safe."""

    def __init__(
        self, description: str = "transfer", *, on_cancel: Callable[[], object] | None = None
    ) -> None:
        """`description` opens the texts of this handle's errors.

        `on_cancel` is called once, in the thread that cancels, if `cancel` ends the handle.
        """
        self.description = description
        self._future: futures.Future[T] = futures.Future()
        # Guards the two fields below. One thread may take it twice: the garbage collector strikes
        # inside of it too, and may end a coroutine that awaits this handle and leaves its list.
        self._lock = threading.RLock()
        self._callbacks: list[Callable[[Handle[T]], None]] = []
        self._is_finished = False
        self._on_cancel = on_cancel

    @classmethod
    def completed(cls, value: T, description: str = "transfer") -> Handle[T]:
        """A handle that is done already."""
        handle: Handle[T] = cls(description)
        handle.set_result(value)
        return handle

    @classmethod
    def failed(cls, error: BaseException, description: str = "transfer") -> Handle[T]:
        """A handle that has failed already."""
        handle: Handle[T] = cls(description)
        handle.set_exception(error)
        return handle

    # The waiting side.

    def done(self) -> bool:
        """Whether there is an outcome: a result, an error, or cancelled."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> T:
        """Waits for the outcome, up to `timeout` seconds, and returns or raises it.

        TransferTimeout: none yet. The work goes on, and the result may be asked for again.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._future.result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits like `result`, and returns the error, or None if there is a result."""
        try:
            return self._future.exception(timeout)
        except futures.TimeoutError:
            pass
        raise TransferTimeout(f"{self.description}: no result within {timeout} s; it goes on")

    def cancel(self, reason: str = "cancelled by this instance") -> bool:
        """Gives the work up; who waits gets TransferCancelled. False: there was an outcome."""
        return self.abandon(TransferCancelled(f"{self.description}: {reason}"))

    def abandon(self, error: BaseException) -> bool:
        """Like `cancel`, with an error that tells who waits why it was given up."""
        on_cancel = self._on_cancel
        if not self.set_exception(error):
            return False
        if on_cancel is not None:
            on_cancel()
        return True

    def add_done_callback(self, fn: Callable[[Handle[T]], None]) -> None:
        """Calls `fn(handle)` once there is an outcome: at once, or in the thread that brings it.

        It must not block. What it raises is logged and goes nowhere else.
        """
        with self._lock:
            if not self._is_finished:
                self._callbacks.append(fn)
                return
        self._call(fn)

    def __await__(self) -> Generator[Any, None, T]:
        """Waits on the running event loop. Cancelling the task that waits cancels nothing else."""
        return self._wait_on_loop().__await__()

    async def _wait_on_loop(self) -> T:
        loop = asyncio.get_running_loop()
        is_done = asyncio.Event()

        def wake(_: Handle[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(is_done.set)

        self.add_done_callback(wake)
        try:
            await is_done.wait()
            return self.result()
        finally:
            self._remove_done_callback(wake)

    def _remove_done_callback(self, fn: Callable[[Handle[T]], None]) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._callbacks.remove(fn)

    def _call(self, fn: Callable[[Handle[T]], None]) -> None:
        try:
            fn(self)
        except Exception:  # a bug of one who waits must not take the outcome from the others
            logger.exception("! a done callback of %r failed", self.description)

    # The owner's side.

    def set_result(self, value: T) -> bool:
        """Fulfils the handle. False: it had an outcome, and the value is for nobody."""
        try:
            self._future.set_result(value)
        except futures.InvalidStateError:
            return False
        self._finish()
        return True

    def set_exception(self, error: BaseException) -> bool:
        """Fails the handle. False: it had an outcome already."""
        if isinstance(error, (asyncio.CancelledError, futures.CancelledError)):
            error = TransferCancelled(f"{self.description}: cancelled")
        try:
            self._future.set_exception(error)
        except futures.InvalidStateError:
            return False
        self._finish()
        return True

    def _finish(self) -> None:
        with self._lock:
            self._is_finished = True
            callbacks, self._callbacks = self._callbacks, []
            self._on_cancel = None
        for fn in callbacks:
            self._call(fn)

    # Combinations.

    def then(
        self,
        fn: Callable[[T], U],
        executor: Executor | None = None,
        *,
        on_dropped: Callable[[T], object] | None = None,
    ) -> Handle[U]:
        """A handle for `fn(result)`. Errors pass through; cancelling it cancels this handle too.

        `fn` runs on `executor`; without one, in the thread that brings the result: then it must
        not block. `on_dropped(result)` is called instead where `fn` will not run, because the
        handle was cancelled at the moment in which the result came: a result that must be given
        back needs it.
        """
        mapped: Handle[U] = Handle(self.description, on_cancel=lambda: _give_up(self, mapped))
        step = _Step(fn, mapped, mapped.set_result, executor, on_dropped)
        self._pass_on(mapped, step)
        return mapped

    def and_then(
        self,
        fn: Callable[[T], Handle[U]],
        executor: Executor | None = None,
        *,
        on_dropped: Callable[[T], object] | None = None,
    ) -> Handle[U]:
        """Like `then`, for a `fn` that starts the next piece of work and returns its handle."""
        chained, adopt = self._chain()
        self._pass_on(chained, _Step(fn, chained, adopt, executor, on_dropped))
        return chained

    def recover(self, fn: Callable[[BaseException], Handle[T]]) -> Handle[T]:
        """The same result, or in place of an error what `fn(error)` leads to.

        `fn` runs in the thread that brings the error, and must not block.
        """
        chained, adopt = self._chain()

        def on_done(source: Handle[T]) -> None:
            error = source.exception()
            if error is None:
                chained.set_result(source.result())
            else:
                _Step(fn, chained, adopt)(error)

        self.add_done_callback(on_done)
        return chained

    def _chain(self) -> tuple[Handle[Any], Callable[[Handle[Any]], None]]:
        """A handle that follows this one, and what makes it follow another one from then on."""
        under_way: list[Handle[Any]] = [self]
        chained: Handle[Any] = Handle(
            self.description, on_cancel=lambda: _give_up(under_way[0], chained)
        )

        def adopt(following: Handle[Any]) -> None:
            under_way[0] = following
            following._pass_on(chained, chained.set_result)
            if chained.done():  # cancelled while `fn` ran: nobody else would end this
                _give_up(following, chained)

        return chained, adopt

    def _pass_on(self, target: Handle[Any], on_value: Callable[[T], object]) -> None:
        """Gives this handle's result to `on_value`, or its error to `target`."""

        def on_done(source: Handle[T]) -> None:
            error = source.exception()
            if error is not None:
                target.set_exception(error)
            else:
                on_value(source.result())

        self.add_done_callback(on_done)


def all_of(handles: Sequence[Handle[T]], description: str = "transfers") -> Handle[list[T]]:
    """One handle for all of them; its result is the list of their results, in their order.

    It owns them: the first error ends it, and gives up those that are still under way, which fail
    with that error too: whoever ends their work can tell why.
    """
    members = list(handles)
    if not members:
        return Handle.completed([], description)
    group: Handle[list[T]] = Handle(description)
    left = [len(members)]
    lock = threading.Lock()

    def on_done(member: Handle[T]) -> None:
        error = member.exception()
        if error is not None:
            group.set_exception(error)
            return
        with lock:
            left[0] -= 1
            is_last = left[0] == 0
        if is_last:
            group.set_result([each.result() for each in members])

    def release_members(ended: Handle[list[T]]) -> None:
        while members:
            _give_up(members.pop(), ended)

    for member in list(members):
        member.add_done_callback(on_done)
    group.add_done_callback(release_members)
    return group


def all_ended(handles: Sequence[Handle[Any]], description: str = "transfers") -> Handle[None]:
    """Done when all of them are; an error ends none of the others, and is told when all have ended.

    Of several errors the first member's is told. Cancelling it gives up those still under way.
    """

    def judge(errors: list[BaseException | None]) -> Handle[None]:
        first = next((error for error in errors if error is not None), None)
        return Handle.completed(None) if first is None else Handle.failed(first)

    return all_of([_ending_of(each) for each in handles], description).and_then(judge)


def _ending_of(work: Handle[Any]) -> Handle[BaseException | None]:
    """A handle for how `work` ends: its error, or None."""
    ending: Handle[BaseException | None] = Handle(
        work.description, on_cancel=lambda: _give_up(work, ending)
    )

    def on_done(done: Handle[Any]) -> None:
        ending.set_result(done.exception())

    work.add_done_callback(on_done)
    return ending


def _give_up(work: Handle[Any], because_of: Handle[Any]) -> None:
    """Ends `work` with the error of a handle that nobody can fulfil any more."""
    error = because_of.exception()
    if error is not None:
        work.abandon(error)


class _Step(Generic[T, U]):
    """Calls `deliver(fn(value))`, on the executor if there is one; errors go to `target`.

    If `target` has an outcome before that, `on_dropped` gets the value: nobody else would.
    """

    def __init__(
        self,
        fn: Callable[[T], U],
        target: Handle[Any],
        deliver: Callable[[U], object],
        executor: Executor | None = None,
        on_dropped: Callable[[T], object] | None = None,
    ) -> None:
        self._fn = fn
        self._target = target
        self._deliver = deliver
        self._executor = executor
        self._on_dropped = on_dropped

    def __call__(self, value: T) -> None:
        if self._executor is None or self._target.done():
            self._run(value)
            return
        try:
            self._executor.submit(
                lambda: self._run(value), on_dropped=lambda reason: self._fail(value, reason)
            )
        except RuntimeError as error:  # the pool is closed
            self._fail(value, str(error))

    def _fail(self, value: T, reason: str) -> None:
        self._target.set_exception(TransferCancelled(f"{self._target.description}: {reason}"))
        self._drop(value)

    def _run(self, value: T) -> None:
        if self._target.done():
            self._drop(value)
            return
        try:
            outcome = self._fn(value)
        except BaseException as error:  # the top of the work: the error goes to who waits for it
            self._target.set_exception(error)
        else:
            self._deliver(outcome)

    def _drop(self, value: T) -> None:
        if self._on_dropped is not None:
            self._on_dropped(value)
