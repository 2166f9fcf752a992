"""pyzmq: a PAIR over tcp between each two instances.

Raw tensor memory, sent and received without a copy on the Python side (`copy=False`): a received
tensor is a view of ZeroMQ's message. After a fan-in the parts are copied into one joined tensor, as
the other ways have it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from comfy_cluster.benchmarks.errors import Unavailable
from comfy_cluster.benchmarks.place import Place
from comfy_cluster.benchmarks.transfers import Kind
from comfy_cluster.benchmarks.ways.base import Way, Work
from comfy_cluster.benchmarks.ways.tcp import bytes_of, take_own_part

try:
    import zmq
except ImportError as error:
    raise Unavailable("pyzmq is not installed: pip install comfy-cluster[bench]") from error


class ZeroMq(Way):
    """A socket for each other instance; instance i binds those of the instances above it."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._context = zmq.Context()
        self._sockets: dict[int, Any] = {peer: self._make_socket() for peer in place.peers}
        self._arrived: dict[int, torch.Tensor] = {}

    def _make_socket(self) -> Any:
        sock = self._context.socket(zmq.PAIR)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.RCVTIMEO, int(self.place.timeout * 1000))
        sock.setsockopt(zmq.SNDTIMEO, int(self.place.timeout * 1000))
        return sock

    def listen(self) -> dict[int, int]:
        """By peer: the port that is there for it."""
        address = f"tcp://{self.place.address}"
        return {
            peer: sock.bind_to_random_port(address)
            for peer, sock in self._sockets.items()
            if peer > self.place.index
        }

    def connect(self, listening: Sequence[dict[int, int]]) -> None:
        index = self.place.index
        for peer in range(index):
            address = self.place.addresses[peer]
            self._sockets[peer].connect(f"tcp://{address}:{listening[peer][index]}")

    def prepare(self, work: Work) -> None:
        if self._is_joined(work):
            _ = work.tensors.destination

    def run(self, work: Work) -> None:
        trackers = [
            self._sockets[leg.receiver].send(
                bytes_of(work.tensors.own[leg.part]), copy=False, track=True
            )
            for leg in work.transfer.legs_from(self.place.index)
        ]
        for leg in work.transfer.legs_to(self.place.index):
            tensor = self._receive(work, leg.sender)
            if self._is_joined(work):
                work.tensors.place(leg.part).copy_(tensor)
            else:
                self._arrived[leg.part] = tensor
        take_own_part(work)
        for tracker in trackers:
            tracker.wait(self.place.timeout)

    def _is_joined(self, work: Work) -> bool:
        return work.transfer.kind is Kind.FAN_IN and bool(work.tensors.wanted)

    def _receive(self, work: Work, sender: int) -> torch.Tensor:
        frame = self._sockets[sender].recv(copy=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of memory that cannot be written
            tensor = torch.frombuffer(frame.buffer, dtype=torch.float32)
        return tensor.view(work.transfer.part_shape)

    def received(self, work: Work) -> dict[int, torch.Tensor]:
        if self._is_joined(work):
            return {part: work.tensors.place(part) for part in work.tensors.wanted}
        return dict(self._arrived)

    def finish(self, work: Work) -> None:
        self._arrived.clear()

    def send_small(self, message: bytes) -> None:
        self._sockets[1 - self.place.index].send(message)

    def receive_small(self) -> bytes:
        message: bytes = self._sockets[1 - self.place.index].recv()
        return message

    def close(self) -> None:
        self._arrived.clear()
        self._context.destroy(linger=0)
