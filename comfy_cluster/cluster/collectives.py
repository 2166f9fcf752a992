"""The four collectives: broadcast, fan-out, fan-in, all-gather.

Used by `Cluster`. Every instance calls the same collective with the same key, in any order and any
number at once; each call returns a handle at once. How tensors travel is in `payloads.py`, who
is lost in `jobs.py`. A cluster of one never comes here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from comfy_cluster import batches
from comfy_cluster.cluster.jobs import Jobs
from comfy_cluster.cluster.keys import CollectiveKey
from comfy_cluster.cluster.payloads import Payloads
from comfy_cluster.config import LEADER
from comfy_cluster.errors import LocalProtocolError, WorkflowError
from comfy_cluster.transport.handle import Executor, Handle, all_of
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.wire import MessageType


class Kind(Enum):
    """The collectives, by the words of their texts."""

    BROADCAST = "broadcast"
    FAN_OUT = "fan-out"
    FAN_IN = "fan-in"
    ALL_GATHER = "all-gather"


_MESSAGE_TYPES = {
    Kind.BROADCAST: MessageType.DISTRIBUTE_BUFFER_BROADCAST,
    Kind.FAN_OUT: MessageType.DISTRIBUTE_BUFFER_FANOUT,
    Kind.FAN_IN: MessageType.DISTRIBUTE_BUFFER_FANIN,
    Kind.ALL_GATHER: MessageType.DISTRIBUTE_BUFFER_GATHER,
}


@dataclass(frozen=True, slots=True)
class _Call:
    """One collective as this instance was asked for it."""

    kind: Kind
    key: CollectiveKey
    is_image: bool = False

    def __str__(self) -> str:
        return f"{self.kind.value} ({self.key})"


class Collectives:
    """Runs collectives for one instance of several. Thread-safe; no method blocks."""

    def __init__(
        self,
        instance_index: int,
        instance_count: int,
        *,
        payloads: Payloads,
        jobs: Jobs,
        executor: Executor,
        is_connected: Callable[[int], bool],
    ) -> None:
        self._own_index = instance_index
        self._count = instance_count
        self._payloads = payloads
        self._jobs = jobs
        self._executor = executor
        self._is_connected = is_connected

    def broadcast(
        self, key: CollectiveKey, tensor: torch.Tensor | None, *, source: int, is_image: bool
    ) -> Handle[torch.Tensor]:
        """See `Cluster.broadcast`."""
        call = _Call(Kind.BROADCAST, key, is_image)
        self._jobs.begin(key.job_id)
        self._check_instances([source])
        if source != self._own_index:
            return self._receive(call, source)
        own = required(tensor, f"the source of the {call}")
        return self._send(call, own, self._peers()).then(lambda _: own)

    def fan_out(
        self, key: CollectiveKey, batch: torch.Tensor | None, *, is_image: bool
    ) -> Handle[torch.Tensor]:
        """See `Cluster.fan_out`."""
        call = _Call(Kind.FAN_OUT, key, is_image)
        self._jobs.begin(key.job_id)
        if self._own_index != LEADER:
            return self._receive(call, LEADER)
        slices = batches.split(required(batch, f"the leader of the {call}"), self._count)
        peers = self._peers()
        sent = {peer: self._send(call, slices[peer], [peer], siblings=len(peers)) for peer in peers}
        # An empty slice is sent too, for whoever calls fan-out there. Whether it arrives matters to
        # nobody here; but the job must not end, and cancel it, while it is on its way.
        on_way = [
            handle if len(slices[peer]) else handle.recover(_never_mind)
            for peer, handle in sent.items()
            if len(slices[peer]) or self._is_connected(peer)
        ]
        return all_of(on_way, str(call)).then(lambda _: slices[LEADER])

    def fan_in(
        self,
        key: CollectiveKey,
        part: torch.Tensor | None,
        *,
        sources: Collection[int] | None,
        is_image: bool,
    ) -> Handle[torch.Tensor]:
        """See `Cluster.fan_in`."""
        call = _Call(Kind.FAN_IN, key, is_image)
        self._jobs.begin(key.job_id)
        wanted = sorted(range(self._count) if sources is None else set(sources))
        self._check_instances(wanted)
        if not wanted:
            raise LocalProtocolError(f"the {call} needs at least one source")
        if self._own_index == LEADER:
            own = required(part, f"the leader in the {call}") if LEADER in wanted else None
            parts = self._receive_parts(call, own, wanted)
            joined = parts.then(lambda got: self._join(call, wanted, got), self._executor)
            self._jobs.track(key.job_id, joined, peers=frozenset())
            return joined
        own = required(part, f"a follower in the {call}")
        if self._own_index not in wanted:
            return Handle.completed(own, str(call))
        return self._send(call, own, [LEADER]).then(lambda _: own)

    def all_gather(
        self, key: CollectiveKey, tensor: torch.Tensor, *, is_image: bool
    ) -> Handle[list[torch.Tensor]]:
        """See `Cluster.all_gather`."""
        call = _Call(Kind.ALL_GATHER, key, is_image)
        self._jobs.begin(key.job_id)
        own = required(tensor, f"every instance in the {call}")
        received = self._receive_parts(call, own, range(self._count))
        both: Handle[list[Any]] = all_of(
            [received, self._send(call, own, self._peers())], str(call)
        )
        return both.then(lambda results: list(results[0]))

    def send(
        self,
        key: CollectiveKey,
        tensor: torch.Tensor,
        peers: Collection[int],
        *,
        kind: Kind,
        is_image: bool,
        siblings: int = 1,
    ) -> Handle[None]:
        """This instance's part of a collective of which others know who takes part."""
        self._jobs.begin(key.job_id)
        self._check_instances(peers)
        return self._send(_Call(kind, key, is_image), tensor, peers, siblings=siblings)

    def receive(self, key: CollectiveKey, source: int, *, kind: Kind) -> Handle[torch.Tensor]:
        """What `source` sends by `send` under that key."""
        self._jobs.begin(key.job_id)
        self._check_instances([source])
        return self.receive_more(key, source, kind=kind)

    def receive_more(self, key: CollectiveKey, source: int, *, kind: Kind) -> Handle[torch.Tensor]:
        """The same for what follows in a job, which may have ended: then it is cancelled."""
        return self._receive(_Call(kind, key), source)

    def _join(self, call: _Call, sources: list[int], parts: list[torch.Tensor]) -> torch.Tensor:
        try:
            return batches.concat(parts, self._payloads.allocate)
        except WorkflowError as error:
            names = ", ".join(map(str, sources))
            raise WorkflowError(
                f"{call}: {error} (parts of instances {names}, counted from 0)"
            ) from error

    def _receive_parts(
        self, call: _Call, own: torch.Tensor | None, sources: Iterable[int]
    ) -> Handle[list[torch.Tensor]]:
        """The tensors of `sources`, in their order; this instance's own is `own`."""
        parts = [
            Handle.completed(own)
            if source == self._own_index and own is not None
            else self._receive(call, source)
            for source in sources
        ]
        return all_of(parts, str(call))

    def _receive(self, call: _Call, source: int) -> Handle[torch.Tensor]:
        job_id = call.key.job_id
        description = f"{call} from instance {source}"

        def track_arriving(arriving: Handle[ReceivedBuffer]) -> None:
            # A peer that is lost while its tensor is decoded is not needed any more.
            arriving.description = description
            self._jobs.track_arriving(job_id, arriving, source=source)

        received = self._payloads.receive(
            call.key.from_source(source), peer=source, on_arriving=track_arriving
        )
        received.description = description
        return self._jobs.explained(job_id, received, peers=frozenset(self._peers()))

    def _send(
        self, call: _Call, tensor: torch.Tensor, peers: Collection[int], *, siblings: int = 1
    ) -> Handle[None]:
        job_id = call.key.job_id

        def track_transfer(peer: int, transfer: Handle[None]) -> Handle[None]:
            # Each by itself: a peer that has its payload may leave before the others have theirs.
            transfer.description = f"{call} to instance {peer}"
            self._jobs.track(job_id, transfer, peers=frozenset({peer}))
            return self._jobs.explained(job_id, transfer, peers=frozenset(self._peers()))

        sent = self._payloads.send(
            tensor,
            peers,
            key=call.key.from_source(self._own_index),
            message_type=_MESSAGE_TYPES[call.kind],
            is_image=call.is_image,
            on_transfer=track_transfer,
            siblings=siblings,
        )
        sent.description = f"{call} to instance {', '.join(map(str, peers))}"
        self._jobs.track(job_id, sent, peers=frozenset())
        return sent

    def _peers(self) -> list[int]:
        return [each for each in range(self._count) if each != self._own_index]

    def _check_instances(self, instances: Iterable[int]) -> None:
        for instance in instances:
            if not 0 <= instance < self._count:
                raise LocalProtocolError(
                    f"there is no instance {instance} in a cluster of {self._count}"
                )


def _never_mind(_: BaseException) -> Handle[None]:
    return Handle.completed(None)


def required(tensor: torch.Tensor | None, whom: str) -> torch.Tensor:
    """The tensor, or LocalProtocolError: `whom` must bring one."""
    if tensor is None:
        raise LocalProtocolError(f"{whom} needs a tensor, and got None")
    return tensor
