"""A region on a follower: slices come from the leader, results go to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.cluster.collectives import Kind
from comfy_cluster.config import LEADER
from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.host import Host
from comfy_cluster.work.kinds import BatchKind, with_positions
from comfy_cluster.work.orders import Order
from comfy_cluster.work.run import NodeCall, wait


class FollowerRun:
    """See `run.Run`. A node that runs twice in a prompt gets, or sends, what it did before."""

    def __init__(self, order: Order, *, cluster: Cluster, host: Host) -> None:
        self._order = order
        self._cluster = cluster
        self._host = host
        self._received: dict[str, Handle[Any]] = {}
        self._for_all: dict[str, list[bool]] = {}  # by fan-out, of each batch
        self._sent: dict[str, Handle[None]] = {}

    def needs_input(self, call: NodeCall) -> bool:
        return call.node_id in self._order.positions

    async def fan_out(self, call: NodeCall, kind: BatchKind, values: list[Any]) -> list[Any]:
        if call.node_id in self._order.positions:
            return self._with_positions(values, self._order.positions[call.node_id])
        for_all, slices = await self._receive(call, Kind.FAN_OUT)
        self._for_all[call.node_id] = for_all
        return list(slices)

    def _with_positions(self, values: list[Any], fan_outs: Sequence[str]) -> list[Any]:
        """`fan_outs`: what the latents are made of; single items of those stay at position 0."""
        for_all = [self._for_all[each] for each in fan_outs if each in self._for_all]
        places = zip(self._order.first_items, self._order.item_counts, strict=True)
        parts = [
            range(1)
            if for_all and all(each[index] for each in for_all)
            else range(first, first + count)
            for index, (first, count) in enumerate(places)
        ]
        return with_positions(values, parts)

    async def fan_in(self, call: NodeCall, kind: BatchKind, values: list[Any]) -> list[Any]:
        if call.node_id not in self._sent:
            self._sent[call.node_id] = self._cluster.send_value(
                self._key(call), values, [LEADER], kind=Kind.FAN_IN, is_image=kind.is_image
            )
        await wait(self._sent[call.node_id], self._host)
        return values

    async def gather(self, call: NodeCall, kind: BatchKind, values: list[Any]) -> list[Any]:
        # Nothing follows it here: what the leader does with the list is the leader's.
        return await self.fan_in(call, kind, values)

    async def broadcast(self, call: NodeCall, value: Any) -> Any:
        return await self._receive(call, Kind.BROADCAST)

    async def listen(self, call: NodeCall) -> Any:
        return await self._receive(call, Kind.BROADCAST)

    async def _receive(self, call: NodeCall, kind: Kind) -> Any:
        if call.node_id not in self._received:
            self._received[call.node_id] = self._cluster.receive_value(
                self._key(call), LEADER, kind=kind
            )
        return await wait(self._received[call.node_id], self._host)

    def _key(self, call: NodeCall) -> CollectiveKey:
        return CollectiveKey(self._order.job_id, call.node_id)

    def close(self, reason: str, *, succeeded: bool = False) -> None:
        for handle in [*self._received.values(), *self._sent.values()]:
            handle.cancel(reason)
