"""The two threads of an engine on real sockets: they move buffers, stop, and tell of errors."""

from __future__ import annotations

import errno
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest

from comfy_cluster.transport.engine_threads import EngineThreads
from comfy_cluster.transport.loops import LAST_WAIT, PythonLoops
from comfy_cluster.transport.sockets import grow_buffers, open_udp_socket

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one
PACKET_SIZE = 8952


class Side:
    """One engine on one socket with its threads."""

    def __init__(self, engine: ModuleType, index: int) -> None:
        self.module = engine
        self.index = index
        self.sock = open_udp_socket("127.0.0.1", 0)
        capacity = grow_buffers(self.sock).receive_capacity
        self.core: Any = engine.PacketEngine(receive_capacity=capacity)
        self.failures: list[BaseException] = []
        self.failed = threading.Event()
        self.threads = EngineThreads(self.core, self.sock, on_failure=self.on_failure)

    def on_failure(self, error: BaseException) -> None:
        self.failures.append(error)
        self.failed.set()

    def connect(self, other: Side) -> None:
        self.core.connect_peer(
            other.index,
            other.sock.getsockname(),
            local_session=100 + self.index,
            remote_session=100 + other.index,
            packet_size=PACKET_SIZE,
            now=time.monotonic(),
        )

    def wait_for(self, event: tuple[Any, ...]) -> None:
        """Waits on `event_fd`, as the control thread does."""
        deadline = time.monotonic() + WAIT
        while True:
            ready, _, _ = select.select([self.threads.event_fd], [], [], WAIT)
            assert ready and time.monotonic() < deadline, f"no {event}"
            self.threads.clear_event_fd()
            if event in self.core.take_events():
                return

    def close(self) -> None:
        assert self.threads.stop()
        self.sock.close()


@pytest.fixture
def pair(engine: ModuleType) -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        sides = Side(engine, 0), Side(engine, 1)
        for side in sides:
            stack.callback(side.close)
        sides[0].connect(sides[1])
        sides[1].connect(sides[0])
        for side in sides:
            side.threads.start()
        yield sides


def test_messages_both_ways(pair: tuple[Side, Side]) -> None:
    for number in range(20):
        for sender, receiver in (pair, pair[::-1]):
            assert sender.core.send_message(receiver.index, b"%d" % number)
            sender.threads.wake_sender()
            receiver.wait_for((sender.module.EVENT_MESSAGE, sender.index, b"%d" % number))


def test_buffer_arrives_bit_for_bit(pair: tuple[Side, Side], rng: random.Random) -> None:
    sender, receiver = pair
    payload = rng.randbytes(3_000_001)
    destination = bytearray(len(payload))
    chunk_size = sender.module.chunk_size_for(PACKET_SIZE)
    receiver.core.open_incoming(0, 7, destination, size=len(payload), chunk_size=chunk_size)
    sender.core.open_outgoing(1, 7, payload[:64], payload[64:], chunk_size=chunk_size)
    sender.threads.wake_sender()
    receiver.wait_for((receiver.module.EVENT_INCOMING_COMPLETE, 0, 7))
    assert destination == payload
    sender.wait_for((sender.module.EVENT_OUTGOING_ACKED, 1, 7))


def test_absent_peer_is_no_reason_to_end(pair: tuple[Side, Side]) -> None:
    """On Linux the ICMP answer of a closed port comes back as an error of a later call."""
    sender, receiver = pair
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        absent = closed.getsockname()
    for _ in range(10):
        sender.core.send_hello(absent, b"hello")
    sender.core.send_hello(("203.0.113.1", 0), b"a port that cannot be")
    sender.core.send_message(1, b"still here")
    sender.threads.wake_sender()
    receiver.wait_for((receiver.module.EVENT_MESSAGE, 0, b"still here"))
    assert not sender.failures


def test_stop_ends_the_threads_and_may_come_twice(pair: tuple[Side, Side]) -> None:
    for side in pair:
        assert side.threads.stop() and side.threads.stop()
        assert not side.failures
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"comfy-cluster-receive", "comfy-cluster-send"}


def test_stop_before_start(engine: ModuleType) -> None:
    Side(engine, 0).close()


def test_packet_that_the_network_refuses_is_counted(engine: ModuleType) -> None:
    side = Side(engine, 0)
    loops = PythonLoops(side.core, side.sock)
    side.core.send_hello(("255.255.255.255", 9), b"broadcast is not allowed here")
    loops_thread = threading.Thread(target=loops.send_loop)
    loops_thread.start()
    wait_until(lambda: loops.stats() != {})
    loops.stop()
    loops_thread.join(WAIT)
    loops.close()
    assert list(loops.stats()) == ["send_errors_EACCES"]
    side.close()


def test_what_was_chosen_to_leave_leaves_though_the_loop_stops() -> None:
    """A GOODBYE that the loop has taken from the engine is in nobody's hands but its own."""
    from comfy_cluster import _fastpath_py

    with ExitStack() as stack:
        sender, receiver = Side(_fastpath_py, 0), Side(_fastpath_py, 1)
        for side in (sender, receiver):
            stack.callback(side.close)
        sender.connect(receiver)
        receiver.connect(sender)
        receiver.threads.start()
        loops = PythonLoops(StoppedAfterChoosing(sender.core, lambda: loops.stop()), sender.sock)
        sender.core.send_message(1, b"goodbye")
        loops.send_loop()
        loops.close()
        receiver.wait_for((_fastpath_py.EVENT_MESSAGE, 0, b"goodbye"))


def test_a_full_socket_is_not_waited_for_by_each_packet_after_the_stop() -> None:
    packets = [(("127.0.0.1", 9), bytes(1000))] * 500
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(bytes(1000))
        engine: Any = FullOfPackets(packets)
        sock: Any = FullSocket(ours)
        loops = PythonLoops(engine, sock)
        sending = threading.Thread(target=loops.send_loop)
        sending.start()
        loops.stop()
        stopped_at = time.monotonic()
        sending.join(WAIT)
        assert time.monotonic() - stopped_at < len(packets) * LAST_WAIT / 10
        loops.close()


class FullOfPackets:
    """An engine that always has something to send."""

    def __init__(self, packets: list[tuple[Any, bytes]]) -> None:
        self._packets = packets

    def packets_to_send(self, now: float) -> list[tuple[Any, bytes]]:
        return self._packets


class FullSocket:
    """A connected one that takes no more, behind the calls of one that is not connected."""

    def __init__(self, sock: socket.socket) -> None:
        self.fileno = sock.fileno
        self._sock = sock

    def sendto(self, packet: bytes, address: object) -> int:
        return self._sock.send(packet)


class StoppedAfterChoosing:
    """An engine whose loop is stopped when packets were taken from it, before they are sent."""

    def __init__(self, core: Any, stop: Callable[[], None]) -> None:
        self.next_timer = core.next_timer
        self.receive_packet = core.receive_packet
        self._core = core
        self._stop = stop

    def packets_to_send(self, now: float) -> list[tuple[Any, bytes]]:
        packets: list[tuple[Any, bytes]] = self._core.packets_to_send(now)
        if packets:
            self._stop()
        return packets


class BrokenSocket:
    """A socket whose every call fails as on a closed file descriptor."""

    def __init__(self, sock: socket.socket) -> None:
        self.fileno = sock.fileno

    def recvfrom(self, size: int) -> None:
        raise OSError(errno.EBADF, "closed")

    def sendto(self, packet: bytes, address: object) -> None:
        raise OSError(errno.EBADF, "closed")


@pytest.mark.parametrize("direction", ["receive", "send"])
def test_broken_socket_fails_the_owner(direction: str) -> None:
    from comfy_cluster import _fastpath_py

    side = Side(_fastpath_py, 0)
    broken: Any = BrokenSocket(side.sock)
    threads = EngineThreads(side.core, broken, on_failure=side.on_failure)
    if direction == "receive":
        side.sock.sendto(b"x", side.sock.getsockname())
    else:
        side.core.send_hello(("127.0.0.1", 9), b"x")
    threads.start()
    assert side.failed.wait(WAIT)
    assert [getattr(error, "errno", None) for error in side.failures] == [errno.EBADF]
    assert threads.stop()
    side.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.001)
