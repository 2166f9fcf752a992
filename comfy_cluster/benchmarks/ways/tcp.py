"""Plain TCP sockets: sendall and recv_into, one connection between each two instances.

Raw tensor memory in both directions, nothing encoded or checked. Destinations are allocated and
touched before the first round. Several legs of one instance run on a thread each.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from comfy_cluster.benchmarks.place import Place
from comfy_cluster.benchmarks.transfers import Kind, Leg
from comfy_cluster.benchmarks.ways.base import SMALL_SIZE, Way, Work

INDEX = struct.Struct("!I")


class Tcp(Way):
    """Connections to all others; instance i listens for those above it."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._listener: socket.socket | None = None
        self._connections: dict[int, socket.socket] = {}
        self._pool = ThreadPoolExecutor(2 * len(place.addresses), "tcp")

    def listen(self) -> int:
        self._listener = socket.create_server((self.place.address, 0))
        self._listener.settimeout(self.place.timeout)
        port: int = self._listener.getsockname()[1]
        return port

    def connect(self, listening: Sequence[int]) -> None:
        index = self.place.index
        for peer in range(index):
            address = (self.place.addresses[peer], listening[peer])
            connection = socket.create_connection(address, self.place.timeout)
            self._add(peer, connection)
            connection.sendall(INDEX.pack(index))
        assert self._listener is not None, "listen comes first"
        while len(self._connections) < len(self.place.peers):
            connection, _ = self._listener.accept()
            connection.settimeout(self.place.timeout)
            name = bytearray(INDEX.size)
            _receive_into(connection, memoryview(name))
            self._add(INDEX.unpack(name)[0], connection)

    def _add(self, peer: int, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[peer] = connection

    def prepare(self, work: Work) -> None:
        if work.tensors.wanted:
            _ = work.tensors.destination

    def run(self, work: Work) -> None:
        sends = [
            partial(self._send, work, leg) for leg in work.transfer.legs_from(self.place.index)
        ]
        receives = [
            partial(self._receive, work, leg) for leg in work.transfer.legs_to(self.place.index)
        ]
        _run_all(self._pool, [*sends, *receives])
        take_own_part(work)

    def _send(self, work: Work, leg: Leg) -> None:
        self._connections[leg.receiver].sendall(bytes_of(work.tensors.own[leg.part]))

    def _receive(self, work: Work, leg: Leg) -> None:
        _receive_into(self._connections[leg.sender], bytes_of(work.tensors.place(leg.part)))

    def received(self, work: Work) -> dict[int, torch.Tensor]:
        return {part: work.tensors.place(part) for part in work.tensors.wanted}

    def send_small(self, message: bytes) -> None:
        self._connections[1 - self.place.index].sendall(message)

    def receive_small(self) -> bytes:
        message = bytearray(SMALL_SIZE)
        _receive_into(self._connections[1 - self.place.index], memoryview(message))
        return bytes(message)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        if self._listener is not None:
            self._listener.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's own memory."""
    return tensor.numpy().data.cast("B")


def take_own_part(work: Work) -> None:
    """After a fan-in: copies what the leader has to where it belongs in the joined tensor."""
    if work.transfer.kind is Kind.FAN_IN and work.tensors.wanted:
        for part, tensor in work.tensors.own.items():
            work.tensors.place(part).copy_(tensor)


def _receive_into(connection: socket.socket, memory: memoryview) -> None:
    while memory:
        size = connection.recv_into(memory)
        if size == 0:
            raise ConnectionError("the other instance has closed the connection")
        memory = memory[size:]


def _run_all(pool: ThreadPoolExecutor, jobs: list[Callable[[], None]]) -> None:
    """A single job runs here; several, each on a thread."""
    if len(jobs) == 1:
        jobs[0]()
        return
    for future in [pool.submit(job) for job in jobs]:
        future.result()
