"""Handle: one outcome, for any number of waiters on threads and event loops."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent import futures

import pytest

from comfy_cluster.errors import PeerLost, TransferCancelled, TransferTimeout
from comfy_cluster.transport.handle import Handle, all_ended, all_of

WAIT = 10.0  # seconds; a bound for a broken build, never waited for in a good one


def in_thread(fn: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=fn)
    thread.start()
    return thread


def test_result_waits_for_the_owner() -> None:
    handle: Handle[int] = Handle()
    thread = in_thread(lambda: handle.set_result(7))
    assert handle.result(WAIT) == 7
    assert handle.done() and handle.exception() is None
    thread.join()


def test_time_out_leaves_the_work_going() -> None:
    handle: Handle[int] = Handle("fan-in of job j")
    with pytest.raises(TransferTimeout, match=r"^fan-in of job j: no result within 0 s"):
        handle.result(0)
    assert not handle.done()
    assert handle.set_result(1)
    assert handle.result(0) == 1


def test_a_timeout_error_of_the_work_is_not_taken_for_a_time_out_of_the_wait() -> None:
    handle: Handle[int] = Handle.failed(TimeoutError("the disk"))
    with pytest.raises(TimeoutError, match="the disk"):
        handle.result(0)


def test_first_outcome_wins() -> None:
    handle: Handle[int] = Handle()
    assert handle.set_result(1)
    assert not handle.set_result(2)
    assert not handle.set_exception(PeerLost("late"))
    assert not handle.cancel()
    assert handle.result() == 1


def test_cancel_calls_the_owner_once_and_wakes_every_waiter() -> None:
    calls: list[str] = []
    errors: list[BaseException | None] = []
    handle: Handle[int] = Handle("buffer 5", on_cancel=lambda: calls.append("cancel"))
    waiters = [in_thread(lambda: errors.append(handle.exception(WAIT))) for _ in range(3)]
    cancellers = [in_thread(handle.cancel) for _ in range(4)]
    for thread in waiters + cancellers:
        thread.join()
    assert calls == ["cancel"]
    assert [type(error) for error in errors] == [TransferCancelled] * 3
    assert str(errors[0]) == "buffer 5: cancelled by this instance"


def test_abandoning_cancels_with_another_error() -> None:
    calls: list[str] = []
    source: Handle[int] = Handle(on_cancel=lambda: calls.append("cancel"))
    mapped = source.then(str)
    assert mapped.abandon(PeerLost("peer 3 was restarted", peer=3))
    assert calls == ["cancel"]
    with pytest.raises(PeerLost, match="peer 3"):
        mapped.result(0)


def test_no_cancel_callback_after_an_outcome() -> None:
    calls: list[str] = []
    handle: Handle[int] = Handle(on_cancel=lambda: calls.append("cancel"))
    handle.set_result(1)
    assert handle.cancel() is False
    assert calls == []


def test_callbacks_are_called_once_before_and_after() -> None:
    handle: Handle[int] = Handle()
    seen: list[int] = []
    handle.add_done_callback(lambda done: seen.append(done.result()))
    assert seen == []
    handle.set_result(3)
    handle.add_done_callback(lambda done: seen.append(done.result() + 1))
    assert seen == [3, 4]


def test_a_failing_callback_does_not_rob_the_others(caplog: pytest.LogCaptureFixture) -> None:
    handle: Handle[int] = Handle()
    seen: list[int] = []

    def fail(done: Handle[int]) -> None:
        raise ZeroDivisionError

    handle.add_done_callback(fail)
    handle.add_done_callback(lambda done: seen.append(done.result()))
    handle.set_result(3)
    assert seen == [3]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("is_done_before", [True, False])
def test_await_on_any_loop(is_done_before: bool) -> None:
    handle: Handle[int] = Handle()
    if is_done_before:
        handle.set_result(5)
    timer = threading.Timer(0.01, lambda: handle.set_result(5))
    timer.start()

    async def wait() -> int:
        return await handle

    assert asyncio.run(wait()) == 5
    assert asyncio.run(wait()) == 5  # a second loop, as ComfyUI starts one a prompt
    timer.join()


def test_many_tasks_of_two_loops_await_the_same_handle() -> None:
    handle: Handle[int] = Handle()
    results: list[list[int]] = []
    ready = threading.Barrier(3)

    async def wait_all() -> list[int]:
        tasks = [asyncio.ensure_future(handle) for _ in range(5)]
        await asyncio.sleep(0)
        ready.wait(WAIT)
        return await asyncio.gather(*tasks)

    threads = [in_thread(lambda: results.append(asyncio.run(wait_all()))) for _ in range(2)]
    ready.wait(WAIT)
    handle.set_result(2)
    for thread in threads:
        thread.join()
    assert results == [[2] * 5] * 2


def test_cancelling_the_awaiting_task_cancels_nothing_else() -> None:
    handle: Handle[int] = Handle()

    async def give_up() -> bool:
        task = asyncio.ensure_future(handle)
        await asyncio.wait({task}, timeout=0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert asyncio.run(give_up())
    assert not handle.done()
    handle.set_result(1)  # and nothing of the closed loop is in the way
    assert handle.result() == 1


class CollectsWhenCompared:
    """A done callback with which the garbage collector strikes while another one is removed."""

    def __call__(self, _: Handle[int]) -> None: ...

    def __eq__(self, other: object) -> bool:
        gc.collect()
        return self is other

    __hash__ = object.__hash__


def waiting_for(handle: Handle[int]) -> Coroutine[object, None, int]:
    """A coroutine that awaits the handle, of a loop that will never run."""

    async def wait() -> int:
        return await handle

    waiting = wait()
    loop = asyncio.new_event_loop()
    asyncio._set_running_loop(loop)
    try:
        waiting.send(None)
    finally:
        asyncio._set_running_loop(None)
        loop.close()
    return waiting


def test_a_waiter_that_is_collected_while_another_one_leaves_is_no_deadlock() -> None:
    handle: Handle[int] = Handle()
    handle.add_done_callback(CollectsWhenCompared())
    leaving = waiting_for(handle)
    gc.disable()
    try:
        garbage: list[object] = [waiting_for(handle)]
        garbage.append(garbage)
        is_collected = threading.Event()
        weakref.finalize(garbage[0], is_collected.set)
        del garbage
        thread = threading.Thread(target=leaving.close, daemon=True)
        thread.start()
        thread.join(WAIT)
        assert not thread.is_alive()
        assert is_collected.is_set()
    finally:
        gc.enable()
    assert len(handle._callbacks) == 1


def test_a_cancelled_handle_never_raises_python_cancelled_errors() -> None:
    async def wait(handle: Handle[int]) -> None:
        await handle

    cancelled: Handle[int] = Handle()
    cancelled.cancel()
    inner: list[BaseException] = [asyncio.CancelledError(), futures.CancelledError()]
    handles: list[Handle[int]] = [cancelled, *(Handle.failed(error) for error in inner)]
    for handle in handles:
        with pytest.raises(TransferCancelled):
            handle.result(0)
        with pytest.raises(TransferCancelled):
            asyncio.run(wait(handle))


def test_loop_closed_before_the_outcome() -> None:
    handle: Handle[int] = Handle()

    async def look() -> None:
        task = asyncio.ensure_future(handle)
        await asyncio.wait({task}, timeout=0)

    asyncio.run(look())
    assert handle.set_result(1)


def test_then_passes_errors_on_and_keeps_its_own() -> None:
    failed: Handle[int] = Handle.failed(PeerLost("peer 2 is silent", peer=2))
    error = failed.then(lambda value: value + 1).exception(0)
    assert isinstance(error, PeerLost) and error.peer == 2
    with pytest.raises(ZeroDivisionError):
        Handle.completed(0).then(lambda value: 1 // value).result(0)


def test_cancelling_a_mapped_handle_cancels_its_source() -> None:
    calls: list[str] = []
    source: Handle[int] = Handle(on_cancel=lambda: calls.append("source"))
    mapped = source.then(str).then(len)
    assert mapped.cancel()
    assert calls == ["source"] and source.done()


def test_and_then_chains_work() -> None:
    first: Handle[int] = Handle()
    second: Handle[str] = Handle()
    chained = first.and_then(lambda value: second.then(lambda text: text * value))
    first.set_result(3)
    assert not chained.done()
    second.set_result("a")
    assert chained.result(0) == "aaa"


@pytest.mark.parametrize("is_first_done", [True, False])
def test_cancelling_a_chain_cancels_what_is_under_way(is_first_done: bool) -> None:
    calls: list[str] = []
    first: Handle[int] = Handle(on_cancel=lambda: calls.append("first"))
    second: Handle[int] = Handle(on_cancel=lambda: calls.append("second"))
    chained = first.and_then(lambda _: second)
    if is_first_done:
        first.set_result(1)
    chained.cancel()
    assert calls == (["second"] if is_first_done else ["first"])


def test_a_chain_cancelled_while_it_starts_its_second_part_ends_that() -> None:
    calls: list[str] = []
    first: Handle[int] = Handle()
    second: Handle[int] = Handle(on_cancel=lambda: calls.append("second"))

    def start(_: int) -> Handle[int]:
        chained.cancel()
        return second

    chained = first.and_then(start)
    first.set_result(1)
    assert calls == ["second"]


def test_a_result_that_comes_while_the_next_step_is_cancelled_is_given_back() -> None:
    class Racing(Handle[int]):
        def abandon(self, error: BaseException) -> bool:
            self.set_result(1)  # as if another thread brought it at this very moment
            return super().abandon(error)

    dropped: list[int] = []
    calls: list[int] = []

    def start(value: int) -> Handle[int]:
        calls.append(value)
        return Handle.completed(value)

    assert Racing().and_then(start, on_dropped=dropped.append).cancel()
    assert Racing().then(calls.append, on_dropped=dropped.append).cancel()
    assert (dropped, calls) == ([1, 1], [])


def test_a_result_that_is_used_is_not_given_back() -> None:
    dropped: list[int] = []
    assert Handle.completed(1).then(str, on_dropped=dropped.append).result(0) == "1"
    assert dropped == []


def test_recovering_replaces_errors_only() -> None:
    instead: Handle[int] = Handle()
    source: Handle[int] = Handle()
    recovered = source.recover(lambda _: instead)
    source.set_exception(PeerLost("instance 2 left", peer=2))
    assert not recovered.done()
    instead.set_result(5)
    assert recovered.result(0) == 5
    assert Handle.completed(1).recover(lambda _: instead).result(0) == 1


@pytest.mark.parametrize("is_first_done", [True, False])
def test_cancelling_a_recovery_cancels_what_is_under_way(is_first_done: bool) -> None:
    calls: list[str] = []
    first: Handle[int] = Handle(on_cancel=lambda: calls.append("first"))
    second: Handle[int] = Handle(on_cancel=lambda: calls.append("second"))
    recovered = first.recover(lambda _: second)
    if is_first_done:
        first.set_exception(PeerLost("instance 2 left"))
    recovered.cancel()
    assert calls == (["second"] if is_first_done else ["first"])


def test_all_of_keeps_the_order() -> None:
    handles: list[Handle[int]] = [Handle() for _ in range(4)]
    group = all_of(handles)
    for index in (2, 0, 3):
        handles[index].set_result(index)
    assert not group.done()
    handles[1].set_result(1)
    assert group.result(0) == [0, 1, 2, 3]
    assert all_of([]).result(0) == []


def test_first_error_ends_the_group_and_cancels_the_rest() -> None:
    calls: list[int] = []

    def cancel_of(index: int) -> Callable[[], None]:
        return lambda: calls.append(index)

    handles: list[Handle[int]] = [Handle(on_cancel=cancel_of(index)) for index in range(4)]
    group = all_of(handles)
    handles[0].set_result(0)
    handles[2].set_exception(PeerLost("peer 2 left", peer=2))
    with pytest.raises(PeerLost, match="peer 2 left"):
        group.result(0)
    assert sorted(calls) == [1, 3]


def test_the_first_error_is_told_down_to_the_work_that_it_ends() -> None:
    work: list[Handle[int]] = [Handle(), Handle()]
    group = all_of([work[0], work[1].then(abs).and_then(Handle.completed)])
    work[0].set_exception(PeerLost("instance 2 left", peer=2))
    assert group.done()
    assert str(work[1].exception(0)) == "instance 2 left"


def test_cancelling_the_group_cancels_its_members() -> None:
    handles: list[Handle[int]] = [Handle() for _ in range(3)]
    handles[0].set_result(0)
    group = all_of(handles)
    group.cancel()
    assert [type(handle.exception(0)) for handle in handles[1:]] == [TransferCancelled] * 2


def test_an_error_is_told_when_all_have_ended_and_ends_none_of_the_others() -> None:
    calls: list[str] = []
    handles: list[Handle[None]] = [Handle(on_cancel=lambda: calls.append("")) for _ in range(3)]
    group = all_ended(handles)
    handles[1].set_exception(PeerLost("instance 2 left", peer=2))
    handles[0].set_result(None)
    assert not group.done() and not handles[2].done()
    handles[2].set_exception(PeerLost("instance 3 left", peer=3))
    with pytest.raises(PeerLost, match="instance 2 left"):
        group.result(0)
    assert calls == []
    assert all_ended([Handle.completed(None)]).result(0) is None
    assert all_ended([]).result(0) is None


def test_cancelling_what_waits_for_all_gives_up_all() -> None:
    handles: list[Handle[None]] = [Handle() for _ in range(3)]
    handles[0].set_result(None)
    all_ended(handles).cancel()
    assert [type(handle.exception(0)) for handle in handles[1:]] == [TransferCancelled] * 2


def test_group_completed_by_many_threads_at_once() -> None:
    for _ in range(20):
        handles: list[Handle[int]] = [Handle() for _ in range(8)]
        group = all_of(handles)
        start = threading.Barrier(8)

        def finish(handle: Handle[int], start: threading.Barrier) -> None:
            start.wait(WAIT)
            handle.set_result(1)

        threads = [threading.Thread(target=finish, args=(each, start)) for each in handles]
        for thread in threads:
            thread.start()
        assert group.result(WAIT) == [1] * 8
        for thread in threads:
            thread.join()


class Payload:
    """Stands for a tensor: something whose life can be watched."""


def test_payloads_are_freed_without_the_garbage_collector() -> None:
    payload = Payload()
    watch = weakref.ref(payload)
    gc.collect()
    gc.disable()
    try:
        sources: list[Handle[Payload]] = [Handle() for _ in range(2)]
        group = all_of([source.then(lambda value: value) for source in sources])
        chained = group.and_then(lambda values: Handle.completed(values[0]))

        async def wait(handle: Handle[Payload]) -> Payload:
            return await handle

        for source in sources:
            source.set_result(payload)
        assert asyncio.run(wait(chained)) is payload
        del payload, sources, source, group, chained
        assert watch() is None
    finally:
        gc.enable()
