"""The compiled engine's socket loops, on real sockets of this machine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from comfy_cluster import fastpath
from comfy_cluster.fastpath import (
    EVENT_INCOMING_COMPLETE,
    EVENT_MESSAGE,
    EVENT_OUTGOING_ACKED,
    EVENT_STUN,
)
from tests import packets
from tests.hostile import Target, nasty_packets

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not fastpath.HAS_LOOPS, reason="the compiled engine's loops are not there"),
]

DEADLINE = 30.0  # seconds until a wait is called a hang

MODES: dict[str, dict[str, bool]] = {
    "gso-gro": {},
    "no-gso": {"use_gso": False},
    "no-gro": {"use_gro": False},
    "no-offload": {"use_gso": False, "use_gro": False},
    "one-call-a-packet": {"use_gso": False, "use_gro": False, "use_mmsg": False},
}


@dataclass
class Side:
    """An engine on a socket of its own, with its two loops running."""

    engine: fastpath.PacketEngine
    socket: socket.socket
    options: dict[str, bool]
    events: list[tuple[object, ...]] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        name = self.socket.getsockname()
        return name[0], name[1]

    def start(self) -> None:
        fd = self.socket.fileno()
        for loop, names in (
            (self.engine.receive_loop, ("use_gro", "use_mmsg")),
            (self.engine.send_loop, ("use_gso", "use_mmsg")),
        ):
            chosen = {name: self.options[name] for name in names if name in self.options}
            thread = threading.Thread(target=loop, args=(fd,), kwargs=chosen, daemon=True)
            self.threads.append(thread)
            thread.start()

    def wait_for(self, *expected: tuple[object, ...]) -> None:
        """Return once each of these events has come."""
        self.wait_until(lambda: all(event in self.events for event in expected))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            readable, _, _ = select.select([self.engine.event_fd], [], [], DEADLINE)
            assert readable and time.monotonic() < end, f"only {self.events} came"
            self.engine.clear_event_fd()
            self.events += self.engine.take_events()

    def stop(self) -> None:
        self.engine.stop_loops()
        for thread in self.threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        self.socket.close()


def connected_pair(
    options: dict[str, bool], *, packet_size: int = 8952, family: int = socket.AF_INET
) -> tuple[Side, Side]:
    sides = []
    for _ in range(2):
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.setblocking(False)
        udp.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        capacity = udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 4
        sides.append(Side(fastpath.PacketEngine(receive_capacity=capacity), udp, options))
    first, second = sides
    now = time.monotonic()
    first.engine.connect_peer(
        1, second.address, local_session=11, remote_session=22, packet_size=packet_size, now=now
    )
    second.engine.connect_peer(
        0, first.address, local_session=22, remote_session=11, packet_size=packet_size, now=now
    )
    first.start()
    second.start()
    return first, second


@pytest.fixture(params=MODES.values(), ids=list(MODES))
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Side, Side]]:
    first, second = connected_pair(request.param, packet_size=1436)
    yield first, second
    first.stop()
    second.stop()


@pytest.fixture
def fast_pair() -> Iterator[tuple[Side, Side]]:
    first, second = connected_pair({})
    yield first, second
    first.stop()
    second.stop()


def send(
    source: Side,
    target: Side,
    buffer_id: int,
    payload: bytes | bytearray,
    *,
    prefix: bytes = b"",
    peer: int = 1,
) -> bytearray:
    """Open a buffer on both sides; return the memory that it arrives in."""
    chunk_size = fastpath.chunk_size_for(1436)
    size = len(prefix) + len(payload)
    destination = bytearray(size)
    target.engine.open_incoming(1 - peer, buffer_id, destination, size=size, chunk_size=chunk_size)
    source.engine.open_outgoing(peer, buffer_id, prefix, payload, chunk_size=chunk_size)
    return destination


def test_buffers_both_ways_arrive_exactly(pair: tuple[Side, Side]) -> None:
    first, second = pair
    rng = random.Random(1)
    sizes = [0, 1, 1383, 1384, 1385, 100_000, 3_000_001]
    there = [rng.randbytes(size) for size in sizes]
    back = [rng.randbytes(size) for size in sizes]
    got_there = [
        send(first, second, 100 + n, data[7:], prefix=data[:7]) for n, data in enumerate(there)
    ]
    got_back = [send(second, first, 200 + n, data, peer=0) for n, data in enumerate(back)]
    second.wait_for(*[(EVENT_INCOMING_COMPLETE, 0, 100 + n) for n in range(len(sizes))])
    first.wait_for(*[(EVENT_INCOMING_COMPLETE, 1, 200 + n) for n in range(len(sizes))])
    first.wait_for(*[(EVENT_OUTGOING_ACKED, 1, 100 + n) for n in range(len(sizes))])
    assert [bytes(data) for data in got_there] == there
    assert [bytes(data) for data in got_back] == back


def test_hostile_packets_in_mid_transfer_change_nothing(pair: tuple[Side, Side]) -> None:
    """They come from the peer's own socket, between its chunks, through the loops."""
    first, second = pair
    rng = random.Random(6)
    payload = rng.randbytes(10_000_000)
    chunk_size = fastpath.chunk_size_for(1436)
    target = Target(22, 100, -(-len(payload) // chunk_size), chunk_size)
    nasty = nasty_packets(rng, target, count=500)
    received = send(first, second, 100, payload)
    for number in range(20_000):
        with contextlib.suppress(BlockingIOError):
            first.socket.sendto(nasty[number % len(nasty)], second.address)
    second.wait_for((EVENT_INCOMING_COMPLETE, 0, 100))
    assert received == payload
    counters = second.engine.stats()
    assert all(counters[name] for name in ("malformed", "unknown_session", "bad_chunk"))


def test_stun_answers_are_told_from_chunks_in_mid_transfer(pair: tuple[Side, Side]) -> None:
    """From a server's socket and from the peer's own, where GRO may join them to chunks."""
    first, second = pair
    payload = random.Random(7).randbytes(10_000_000)
    waited_for, unknown = bytes(range(12)), bytes(12)
    second.engine.expect_stun(waited_for)
    received = send(first, second, 100, payload)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        where = {server.getsockname(): server, first.address: first.socket}
        for number in range(2000):
            for each in where.values():
                with contextlib.suppress(BlockingIOError):
                    each.sendto(packets.stun(unknown, b"x" * 12), second.address)
                    if number % 100 == 0:
                        each.sendto(packets.stun(waited_for, b"y" * 12), second.address)
        second.wait_for(
            (EVENT_INCOMING_COMPLETE, 0, 100),
            *((EVENT_STUN, address, packets.stun(waited_for, b"y" * 12)) for address in where),
        )
    assert received == payload
    answers = [event for event in second.events if event[0] == EVENT_STUN]
    assert all(event[2] == packets.stun(waited_for, b"y" * 12) for event in answers)
    assert second.engine.stats()["malformed"] > 0


def test_messages_arrive_once_each(pair: tuple[Side, Side]) -> None:
    first, second = pair
    messages = [b"message %d" % number for number in range(200)]  # what any socket buffer holds
    for message in messages:
        assert first.engine.send_message(1, message)
    second.wait_until(lambda: len(second.events) >= len(messages))
    assert second.events == [(EVENT_MESSAGE, 0, message) for message in messages]


def test_ipv6_carries_buffers_too() -> None:
    try:
        first, second = connected_pair({}, family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    payload = random.Random(2).randbytes(1_000_000)
    received = send(first, second, 5, payload)
    second.wait_for((EVENT_INCOMING_COMPLETE, 0, 5))
    assert received == payload
    first.stop()
    second.stop()


def test_a_transfer_needs_no_gil(fast_pair: tuple[Side, Side]) -> None:
    """Both ends run in this process, whose only running Python thread never lets the GIL go."""
    first, second = fast_pair
    payload = random.Random(3).randbytes(30_000_000)
    received = bytearray(len(payload))
    chunk_size = fastpath.chunk_size_for(8952)
    second.engine.open_incoming(0, 7, received, size=len(payload), chunk_size=chunk_size)
    descriptor = Pollfd(second.engine.event_fd, select.POLLIN, 0)
    poll_with_gil = ctypes.PyDLL(None).poll  # unlike CDLL, PyDLL keeps the GIL during the call
    first.engine.open_outgoing(1, 7, b"", payload, chunk_size=chunk_size)
    assert poll_with_gil(ctypes.byref(descriptor), 1, int(DEADLINE * 1000)) == 1
    assert (EVENT_INCOMING_COMPLETE, 0, 7) in second.engine.take_events()
    assert received == payload


class Pollfd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def test_closing_in_mid_transfer_lets_the_memory_go(fast_pair: tuple[Side, Side]) -> None:
    first, second = fast_pair
    for number in range(30):
        payload = bytearray(8_000_000)
        received = send(first, second, number, payload)
        if number % 2:
            first.engine.close_outgoing(number)
            second.engine.close_incoming(number)
        else:
            second.engine.close_incoming(number)
            first.engine.close_outgoing(number)
        payload.append(0)  # BufferError while anything still exports the memory
        received.append(0)
    after = random.Random(4).randbytes(1_000_000)
    received = send(first, second, 99, after)
    second.wait_for((EVENT_INCOMING_COMPLETE, 0, 99))
    assert received == after


def test_disconnecting_in_mid_transfer_lets_the_memory_go(fast_pair: tuple[Side, Side]) -> None:
    first, second = fast_pair
    payload = bytearray(50_000_000)
    received = send(first, second, 1, payload)
    first.engine.disconnect_peer(1)
    second.engine.disconnect_peer(0)
    payload.append(0)
    received.append(0)
    with pytest.raises(ValueError, match="not connected"):
        first.engine.peer_stats(1)


def test_loops_stop_in_mid_transfer(fast_pair: tuple[Side, Side]) -> None:
    first, second = fast_pair
    send(first, second, 1, bytes(50_000_000))
    first.engine.stop_loops()
    for thread in first.threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_messages_that_were_chosen_leave_though_the_loops_stop(rng: random.Random) -> None:
    """A GOODBYE that a loop has taken from the engine is in nobody's hands but its own."""
    messages = [b"message %d" % number for number in range(60)]
    for _ in range(50):
        first, second = connected_pair(MODES["one-call-a-packet"])
        for message in messages:
            assert first.engine.send_message(1, message)
        time.sleep(rng.uniform(0.0, 0.0003))  # into the burst, on most machines
        first.engine.stop_loops()
        for thread in first.threads:
            thread.join(DEADLINE)
        for address, packet in first.engine.packets_to_send(time.monotonic()):
            first.socket.sendto(packet, address)
        second.wait_for(*((EVENT_MESSAGE, 0, message) for message in messages))
        assert len(second.events) == len(messages)
        first.stop()
        second.stop()


def test_a_receiver_that_sleeps_is_found_when_it_wakes() -> None:
    """While its loops are not running yet, packets pile up and are lost; later all arrives."""
    first, second = connected_pair({}, packet_size=8952)
    second.engine.stop_loops()
    for thread in second.threads:
        thread.join(DEADLINE)
    sleeper = second.socket
    payload = random.Random(5).randbytes(20_000_000)
    received = bytearray(len(payload))
    chunk_size = fastpath.chunk_size_for(8952)
    awake = Side(fastpath.PacketEngine(), sleeper, {})
    awake.engine.connect_peer(
        0,
        first.address,
        local_session=22,
        remote_session=11,
        packet_size=8952,
        now=time.monotonic(),
    )
    awake.engine.open_incoming(0, 3, received, size=len(payload), chunk_size=chunk_size)
    first.engine.open_outgoing(1, 3, b"", payload, chunk_size=chunk_size)
    first_probe_sent(first)
    awake.start()
    awake.wait_for((EVENT_INCOMING_COMPLETE, 0, 3))
    assert received == payload
    first.stop()
    awake.stop()


def first_probe_sent(side: Side) -> None:
    end = time.monotonic() + DEADLINE
    while not side.engine.peer_stats(1)["probes_sent"]:
        assert time.monotonic() < end
        os.sched_yield()


def test_a_socket_beyond_use_ends_the_loop_with_an_error() -> None:
    engine = fastpath.PacketEngine()
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="receive loop"):
            engine.receive_loop(reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_engines_come_and_go_without_leaking_descriptors() -> None:
    def open_descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc on this system")
    before = open_descriptors()
    for _ in range(20):
        first, second = connected_pair({})
        first.engine.send_message(1, b"hello")
        second.wait_for((EVENT_MESSAGE, 0, b"hello"))
        first.stop()
        second.stop()
        del first, second
    assert open_descriptors() == before
