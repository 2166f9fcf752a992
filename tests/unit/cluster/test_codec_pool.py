"""The codec threads: started when needed, named, never in the way of an exit."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from comfy_cluster.cluster.codec_pool import CodecPool
from comfy_cluster.codec.interruption import check_interruption
from comfy_cluster.errors import TransferCancelled
from comfy_cluster.transport.handle import Handle

WAIT = 10.0  # seconds; a bound for a broken build, never waited for in a good one


def test_threads_start_when_they_are_needed() -> None:
    pool = CodecPool(3)
    assert pool.thread_count == 0
    release = threading.Event()
    done: list[Handle[bool]] = []
    for busy_count in range(1, 6):
        done.append(Handle.completed(None).then(lambda _: release.wait(WAIT), pool))
        assert pool.thread_count == min(busy_count, 3)
    release.set()
    assert [each.result(WAIT) for each in done] == [True] * 5
    pool.close(WAIT)


def test_without_another_thread_those_that_there_are_do_it_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = CodecPool(3)
    with no_more_threads(monkeypatch), pytest.raises(RuntimeError, match="new thread"):
        pool.submit(lambda: pytest.fail("it was refused"))
    release = threading.Event()
    busy = Handle.completed(None).then(lambda _: release.wait(WAIT), pool)
    with no_more_threads(monkeypatch):
        second = Handle.completed(None).then(lambda _: threading.current_thread().name, pool)
    release.set()
    assert busy.result(WAIT)
    assert second.result(WAIT) == "comfy-cluster-codec-0"
    pool.close(WAIT)


@contextlib.contextmanager
def no_more_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as changed:
        changed.setattr(threading.Thread, "start", start)
        yield


def test_threads_are_named_daemons_and_end_with_the_pool() -> None:
    pool = CodecPool(1)
    thread = Handle.completed(None).then(lambda _: threading.current_thread(), pool).result(WAIT)
    assert thread.name == "comfy-cluster-codec-0" and thread.daemon
    pool.close(WAIT)
    pool.close(WAIT)
    assert not thread.is_alive()


def test_closing_drops_what_has_not_begun() -> None:
    pool = CodecPool(1)
    began, release = threading.Event(), threading.Event()
    ran: list[str] = []

    def first() -> None:
        began.set()
        release.wait(WAIT)
        ran.append("first")

    pool.submit(first)
    pool.submit(lambda: ran.append("second"))
    assert began.wait(WAIT)
    pool.close(0)  # it does not wait longer than it was told
    release.set()
    pool.close(WAIT)
    assert ran == ["first"]
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(lambda: None)


def test_closing_ends_who_waits_for_what_has_not_begun() -> None:
    pool = CodecPool(1)
    began, release = threading.Event(), threading.Event()

    def first() -> None:
        began.set()
        release.wait(WAIT)

    pool.submit(first)
    assert began.wait(WAIT)
    given_back: list[str] = []
    waiting = Handle.completed("payload", "fan-in").then(str, pool, on_dropped=given_back.append)
    used: list[BaseException] = []

    def use_the_pool(_: Handle[str]) -> None:
        """On another thread: whoever is told must be free to wait for one that uses the pool."""
        next_step = Handle.completed(None).then(lambda _: None, pool)
        used.append(next_step.exception(WAIT) or AssertionError("it is closed"))

    def use_it_elsewhere(done: Handle[str]) -> None:
        thread = threading.Thread(target=use_the_pool, args=(done,), daemon=True)
        thread.start()
        thread.join(WAIT)

    waiting.add_done_callback(use_it_elsewhere)
    pool.stop()
    with pytest.raises(TransferCancelled, match="fan-in: the codec threads were closed"):
        waiting.result(WAIT)
    assert given_back == ["payload"]
    assert [type(each) for each in used] == [TransferCancelled]
    release.set()
    pool.close(WAIT)


def test_an_idle_thread_keeps_no_payload() -> None:
    class Payload:
        pass

    pool = CodecPool(1)
    payload = Payload()
    watch = weakref.ref(payload)
    gc.disable()
    try:
        Handle.completed(payload).then(lambda _: None, pool).result(WAIT)
        del payload
        # A second task on the only thread: the first one is over and forgotten by then.
        Handle.completed(None).then(lambda _: None, pool).result(WAIT)
        assert watch() is None
    finally:
        gc.enable()
        pool.close(WAIT)


def test_an_exit_does_not_wait_for_what_is_queued() -> None:
    code = (
        "import threading\n"
        "from comfy_cluster.cluster.codec_pool import CodecPool\n"
        "began = threading.Event()\n"
        "pool = CodecPool(1)\n"
        "pool.submit(lambda: (began.set(), threading.Event().wait()))\n"
        "pool.submit(lambda: print('never'))\n"
        "began.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_closing_interrupts_codec_work_and_waits_for_its_end() -> None:
    pool = CodecPool(1)
    began = threading.Event()

    def work_for_ever(_: None) -> None:
        while True:
            check_interruption()
            began.set()

    handle = Handle.completed(None).then(work_for_ever, pool)
    thread = next(each for each in threading.enumerate() if each.name == "comfy-cluster-codec-0")
    assert began.wait(WAIT)
    pool.close(WAIT)
    assert not thread.is_alive()
    with pytest.raises(TransferCancelled, match="closed"):
        handle.result(WAIT)


def test_an_exit_closes_a_pool_that_nobody_closed() -> None:
    code = (
        "import threading\n"
        "from comfy_cluster.cluster.codec_pool import CodecPool\n"
        "from comfy_cluster.codec.interruption import check_interruption\n"
        "from comfy_cluster.errors import TransferCancelled\n"
        "began = threading.Event()\n"
        "def work():\n"
        "    try:\n"
        "        while True:\n"
        "            check_interruption()\n"
        "            began.set()\n"
        "    except TransferCancelled:\n"
        "        print('interrupted')\n"
        "CodecPool(1).submit(work)\n"
        "began.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
