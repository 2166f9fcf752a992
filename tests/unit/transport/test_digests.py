"""Digests of payloads, made and checked away from the caller."""

from __future__ import annotations

import gc
import queue
import threading
import weakref
from collections.abc import Iterator

import pytest

from comfy_cluster.codec.payload import DIGEST_BLOCK, EncodedPayload, digest_of
from comfy_cluster.transport import digests, workers
from comfy_cluster.transport.digests import SMALL_PAYLOAD, DigestPool
from comfy_cluster.transport.workers import WorkerPool

WAIT = 10.0  # seconds; a bound for a broken build, never waited for in a good one
LARGE = 2 * SMALL_PAYLOAD


class Fixture:
    def __init__(self) -> None:
        self.failures: queue.Queue[BaseException] = queue.Queue()
        self.workers = WorkerPool(on_failure=self.failures.put)
        self.pool = DigestPool(self.workers)


@pytest.fixture
def made() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    assert fixture.workers.close()


def payload_of(size: int, fill: int = 7) -> EncodedPayload:
    return EncodedPayload(b"prefix", memoryview(bytes([fill]) * (size - 6)), "raw")


@pytest.mark.parametrize(
    "size", [6, SMALL_PAYLOAD, SMALL_PAYLOAD + 1, LARGE, DIGEST_BLOCK, 5 * DIGEST_BLOCK + 3]
)
def test_digest_is_the_payloads(made: Fixture, size: int) -> None:
    payload = payload_of(size)
    answer: queue.Queue[bytes] = queue.Queue()
    made.pool.digest(payload, answer.put)
    assert answer.get(timeout=WAIT) == payload.digest()


def test_large_payload_is_read_on_another_thread(made: Fixture) -> None:
    names: queue.Queue[str] = queue.Queue()
    made.pool.digest(payload_of(LARGE), lambda _: names.put(threading.current_thread().name))
    assert names.get(timeout=WAIT).startswith("comfy-cluster-worker-")


def test_payload_for_several_peers_is_read_once(
    made: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    may_read = threading.Event()

    def slow_digest(block: list[memoryview]) -> bytes:
        reads.append(sum(map(len, block)))
        assert may_read.wait(WAIT)
        return b"digest"

    monkeypatch.setattr(digests, "digest_of_block", slow_digest)
    answer: queue.Queue[bytes] = queue.Queue()
    payload = payload_of(LARGE)
    for _ in range(3):
        made.pool.digest(payload, answer.put)
    may_read.set()
    assert [answer.get(timeout=WAIT) for _ in range(3)] == [b"digest"] * 3
    assert reads == [LARGE]


@pytest.mark.parametrize("size", [0, 100, LARGE, 3 * DIGEST_BLOCK + 1])
@pytest.mark.parametrize("is_right", [True, False])
def test_verify(made: Fixture, size: int, is_right: bool) -> None:
    data = memoryview(bytearray(size))
    digest = digest_of(data) if is_right else bytes(16)
    answer: queue.Queue[bool] = queue.Queue()
    made.pool.verify(data, digest, answer.put)
    assert answer.get(timeout=WAIT) is is_right


def test_payload_is_let_go(made: Fixture) -> None:
    payload = payload_of(LARGE)

    class Memory(bytearray):
        pass

    memory = Memory(LARGE)
    body = weakref.ref(memory)
    payload = EncodedPayload(b"", memoryview(memory), "raw")
    del memory
    answer: queue.Queue[bytes] = queue.Queue()
    made.pool.digest(payload, answer.put)
    answer.get(timeout=WAIT)
    made.pool.digest(payload_of(LARGE), answer.put)  # so that the first job is over for sure
    answer.get(timeout=WAIT)
    del payload
    deadline = threading.Event()
    for _ in range(100):
        gc.collect()
        if body() is None:
            break
        deadline.wait(0.01)
    assert body() is None


def test_no_thread_without_large_payloads(made: Fixture) -> None:
    made.pool.digest(payload_of(100), lambda _: None)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("comfy-cluster-worker")]


def test_close_ends_the_threads_and_later_work_is_dropped(made: Fixture) -> None:
    answer: queue.Queue[bytes] = queue.Queue()
    made.pool.digest(payload_of(LARGE), answer.put)
    answer.get(timeout=WAIT)
    assert made.workers.close() and made.workers.close()
    made.pool.digest(payload_of(LARGE), answer.put)
    assert answer.empty()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("comfy-cluster-worker")]


def test_error_on_a_pool_thread_is_told(made: Fixture) -> None:
    def fail(digest: bytes) -> None:
        raise RuntimeError("a bug")

    made.pool.digest(payload_of(LARGE), fail)
    assert str(made.failures.get(timeout=WAIT)) == "a bug"
    assert workers.THREAD_COUNT == 2


@pytest.mark.parametrize("thread_count", [0, 1])
def test_without_another_thread_those_that_there_are_do_it_all(
    made: Fixture, monkeypatch: pytest.MonkeyPatch, thread_count: int
) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def start_some(thread: threading.Thread) -> None:
        if len(started) >= thread_count:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    answer: queue.Queue[bytes] = queue.Queue()
    payload = payload_of(5 * DIGEST_BLOCK)
    made.pool.digest(payload, answer.put)
    assert answer.get(timeout=WAIT) == payload.digest()


def test_what_is_to_be_done_at_the_end_waits_for_a_job_under_way(made: Fixture) -> None:
    began, release, ended = (threading.Event() for _ in range(3))
    done: list[bool] = []

    def work() -> None:
        began.set()
        assert release.wait(WAIT)
        done.append(True)

    made.workers.run(work)
    assert began.wait(WAIT)

    def at_end() -> None:
        done.append(False)
        ended.set()

    assert not made.workers.close(at_end)
    assert done == []
    release.set()
    assert ended.wait(WAIT)
    assert done == [True, False]
