"""The raw GSO/GRO ceiling: the engine's loop that moves the same memory with no protocol.

From the source's memory into the destination's, with a credit so that the receive buffer is not
overrun, and nothing else: no headers, acknowledgements, loss recovery, digests or decoding. What
is lost stays lost; a round with lost bytes fails and says how many. Point to point only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import torch

from comfy_cluster import fastpath
from comfy_cluster.benchmarks.errors import BenchmarkError, Unavailable
from comfy_cluster.benchmarks.place import Place
from comfy_cluster.benchmarks.ways.base import Way, Work
from comfy_cluster.benchmarks.ways.tcp import bytes_of
from comfy_cluster.transport.sockets import grow_buffers, open_udp_socket

WINDOW = 512 << 10  # bytes; measured: less waits for credits, more leaves the caches
LOOPBACK_SEGMENT_SIZE = 8928  # bytes of UDP payload, as our packets on loopback
ETHERNET_SEGMENT_SIZE = 1424


class Ceiling(Way):
    """A UDP socket, connected to the other instance's."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        if not fastpath.IS_COMPILED:
            raise Unavailable("needs the compiled packet engine; this is the pure-Python one")
        if not fastpath.HAS_CEILING:
            raise Unavailable("needs Linux: UDP_SEGMENT and UDP_GRO")
        self._socket = open_udp_socket(place.address, 0)
        grow_buffers(self._socket)
        self._call_count = 0
        is_loopback = ipaddress.ip_address(place.address).is_loopback
        self._segment_size = LOOPBACK_SEGMENT_SIZE if is_loopback else ETHERNET_SEGMENT_SIZE

    def listen(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    def connect(self, listening: Sequence[int]) -> None:
        peer = 1 - self.place.index
        if len(listening) == 2:
            self._socket.connect((self.place.addresses[peer], listening[peer]))

    def prepare(self, work: Work) -> None:
        if work.tensors.wanted:
            _ = work.tensors.destination

    def run(self, work: Work) -> None:
        tensors, fd = work.tensors, self._socket.fileno()
        options = {"window": WINDOW, "nonce": work.number}
        if tensors.own:
            memory = bytes_of(tensors.own[0])
            result = fastpath.ceiling_send(
                fd, memory, segment_size=self._segment_size, timeout=self.place.timeout, **options
            )
        else:
            memory = bytes_of(tensors.place(0))
            result = fastpath.ceiling_receive(fd, memory, timeout=self.place.timeout, **options)
        self._call_count += result["calls"]
        if result["bytes"] != len(memory):
            lost = len(memory) - result["bytes"]
            raise BenchmarkError(f"the raw ceiling lost {lost} of {len(memory)} bytes")

    def received(self, work: Work) -> dict[int, torch.Tensor]:
        return {part: work.tensors.place(part) for part in work.tensors.wanted}

    def counters(self) -> dict[str, int]:
        return {"socket_calls": self._call_count}

    def close(self) -> None:
        self._socket.close()
