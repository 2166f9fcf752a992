"""The raw ceiling: memory to memory over UDP, and what was lost is told."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest

from tests.engines import COMPILED, PYTHON, load_engine

LOOPBACK = ("127.0.0.1", 0)
TIMEOUT = 30.0  # seconds; a bound for a broken build
WINDOW = 1 << 16  # bytes: also as single packets they fit into a default receive buffer
SEGMENT_SIZE = 1424
Sockets = tuple[socket.socket, socket.socket]


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    engine = load_engine(COMPILED)
    if not engine.HAS_CEILING:
        pytest.skip("the raw ceiling needs Linux")
    return engine


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """Two UDP sockets, bound and not connected."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        one.bind(LOOPBACK)
        other.bind(LOOPBACK)
        yield one, other


def move(
    engine: ModuleType, sockets: Sockets, data: bytes, destination: bytearray, *, nonce: int = 1
) -> tuple[dict[str, int], dict[str, int]]:
    """Sends on the first socket and receives on the second; what both returned."""
    options = {"window": WINDOW, "nonce": nonce, "timeout": TIMEOUT}
    sender, receiver = sockets
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(engine.ceiling_receive, receiver.fileno(), destination, **options)
        sent = engine.ceiling_send(sender.fileno(), data, segment_size=SEGMENT_SIZE, **options)
        return sent, received.result(TIMEOUT)


@pytest.mark.parametrize("size", [1, SEGMENT_SIZE, 2 * WINDOW, 5_000_001])
def test_every_byte_arrives(compiled: ModuleType, sockets: Sockets, size: int) -> None:
    one, other = sockets
    one.connect(other.getsockname())
    other.connect(one.getsockname())
    data = bytes(range(251)) * (size // 251 + 1)
    for nonce in (1, 2):  # the second finds nothing of the first in its way
        destination = bytearray(size)
        sent, received = move(compiled, sockets, data[:size], destination, nonce=nonce)
        assert sent["bytes"] == received["bytes"] == size
        assert destination == data[:size]
        assert 0 < sent["calls"] < size // SEGMENT_SIZE + 20


def test_lost_bytes_are_told_and_not_sent_again(compiled: ModuleType, sockets: Sockets) -> None:
    data = bytes(range(200)) * 1000
    lost_packet = 7
    with Relay(sockets, lost_packet) as relay:
        destination = bytearray(len(data))
        sent, received = move(compiled, sockets, data, destination)
    assert relay.packet_count == -(-len(data) // SEGMENT_SIZE)
    assert sent["bytes"] == received["bytes"] == len(data) - SEGMENT_SIZE
    cut = lost_packet * SEGMENT_SIZE
    assert destination[: received["bytes"]] == data[:cut] + data[cut + SEGMENT_SIZE :]


class Relay:
    """Passes packets between two sockets, and drops one from the first to the second."""

    def __init__(self, sockets: Sockets, lost_packet: int) -> None:
        self._lost_packet = lost_packet
        self.packet_count = 0
        """Packets with data that the first socket has sent."""
        self._ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in sockets]
        for end, sock in zip(self._ends, sockets, strict=True):
            end.bind(LOOPBACK)
            end.connect(sock.getsockname())
            end.settimeout(0.05)  # seconds until it looks whether to stop
            sock.connect(end.getsockname())
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._pass_on, args=(i,)) for i in range(2)]

    def __enter__(self) -> Relay:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _pass_on(self, index: int) -> None:
        while not self._stop.is_set():
            try:
                packet = self._ends[index].recv(65536)
            except TimeoutError:
                continue
            if index == 0 and packet:
                self.packet_count += 1
                if self.packet_count == self._lost_packet + 1:
                    continue
            self._ends[1 - index].send(packet)


def test_nobody_there_is_a_timeout(compiled: ModuleType, sockets: Sockets) -> None:
    one, other = sockets
    one.connect(other.getsockname())
    options = {"window": WINDOW, "nonce": 1, "timeout": 0.01}
    with pytest.raises(TimeoutError):
        compiled.ceiling_send(one.fileno(), b"data", segment_size=SEGMENT_SIZE, **options)
    with pytest.raises(TimeoutError):
        compiled.ceiling_receive(one.fileno(), bytearray(4), **options)


def test_impossible_sizes_are_refused(compiled: ModuleType, sockets: Sockets) -> None:
    fd = sockets[0].fileno()
    options = {"nonce": 1, "timeout": 0.01}
    with pytest.raises(ValueError, match="window must be at least"):
        compiled.ceiling_send(fd, b"data", segment_size=SEGMENT_SIZE, window=1000, **options)
    with pytest.raises(ValueError, match="window must be at least"):
        compiled.ceiling_receive(fd, bytearray(4), window=1000, **options)
    with pytest.raises(ValueError, match="segment_size must be"):
        compiled.ceiling_send(fd, b"data", segment_size=70_000, window=WINDOW, **options)
    with pytest.raises(BufferError):
        compiled.ceiling_receive(fd, b"read only", window=WINDOW, **options)


def test_a_socket_that_is_closed_is_an_error(compiled: ModuleType, sockets: Sockets) -> None:
    options = {"window": WINDOW, "nonce": 1, "timeout": TIMEOUT}
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fd = closed.fileno()
    closed.close()
    with pytest.raises(OSError, match="raw ceiling"):
        compiled.ceiling_receive(fd, bytearray(4), **options)


def test_the_twin_says_that_it_has_none() -> None:
    twin = load_engine(PYTHON)
    assert not twin.HAS_CEILING
    options = {"window": WINDOW, "nonce": 1, "timeout": TIMEOUT}
    with pytest.raises(OSError, match="needs the compiled packet engine") as raised:
        twin.ceiling_send(0, b"data", segment_size=SEGMENT_SIZE, **options)
    assert raised.value.errno == errno.ENOSYS
    with pytest.raises(OSError, match="needs the compiled packet engine"):
        twin.ceiling_receive(0, bytearray(4), **options)
