"""torch.distributed with gloo: what a user of PyTorch would pick on CPUs.

send/recv, scatter, gather, broadcast and all_gather. Destinations are allocated and touched before
the first round, as its API wants them, and used again in each: the best case for it. After a fan-in
the parts lie joined in one tensor, because they are received into slices of it.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from comfy_cluster.benchmarks.errors import Unavailable
from comfy_cluster.benchmarks.place import Place
from comfy_cluster.benchmarks.transfers import Kind
from comfy_cluster.benchmarks.ways.base import SMALL_SIZE, Way, Work


class Gloo(Way):
    """The process's one default group."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        if not dist.is_available() or not dist.is_gloo_available():
            raise Unavailable("this build of PyTorch has no gloo")
        self._timeout = datetime.timedelta(seconds=place.timeout)
        self._store: Any = None
        self._small = torch.zeros(SMALL_SIZE, dtype=torch.uint8)

    def listen(self) -> int:
        """Instance 0 holds the meeting point; its port."""
        if self.place.index:
            return 0
        self._store = self._open_store(0)
        port: int = self._store.port
        return port

    def connect(self, listening: Sequence[int]) -> None:
        if self._store is None:
            self._store = self._open_store(listening[0])
        dist.init_process_group(
            "gloo",
            store=self._store,
            rank=self.place.index,
            world_size=len(self.place.addresses),
            timeout=self._timeout,
        )

    def _open_store(self, port: int) -> Any:
        return dist.TCPStore(  # type: ignore[attr-defined]
            self.place.addresses[0],
            port,
            is_master=self.place.index == 0,
            timeout=self._timeout,
            wait_for_workers=False,
        )

    def prepare(self, work: Work) -> None:
        if work.tensors.wanted:
            _ = work.tensors.destination

    def run(self, work: Work) -> None:
        tensors, index = work.tensors, self.place.index
        kind = work.transfer.kind
        if kind is Kind.FAN_OUT:
            own = tensors.own[0] if index == 0 else tensors.place(index)
            dist.scatter(own, list(tensors.own.values()) if index == 0 else None, src=0)
        elif kind is Kind.FAN_IN:
            dist.gather(tensors.own[index], self._places(work) if index == 0 else None, dst=0)
        elif kind is Kind.ALL_GATHER:
            dist.all_gather(self._places(work), tensors.own[index])
        elif kind is Kind.BROADCAST:
            dist.broadcast(
                tensors.own[0] if tensors.own else tensors.place(0), work.transfer.source
            )
        elif tensors.own:
            dist.send(tensors.own[0], 1 - index)
        else:
            dist.recv(tensors.place(0), 1 - index)

    def _places(self, work: Work) -> list[torch.Tensor]:
        return [work.tensors.place(part) for part in range(work.transfer.part_count)]

    def received(self, work: Work) -> dict[int, torch.Tensor]:
        return {part: work.tensors.place(part) for part in work.tensors.wanted}

    def send_small(self, message: bytes) -> None:
        dist.send(torch.frombuffer(bytearray(message), dtype=torch.uint8), 1 - self.place.index)

    def receive_small(self) -> bytes:
        dist.recv(self._small, 1 - self.place.index)
        return self._small.numpy().tobytes()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
