"""Several instances of a cluster in one process: fake ComfyUI, real clusters, a network in memory.

`with Instances(3) as joined:` starts them. When the block ends without an error, everything must
have come to its end: no run, order, job or prompt is left.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch

from comfy_cluster import errors
from comfy_cluster.cluster import Cluster
from comfy_cluster.cluster.state import InstanceState
from comfy_cluster.protocol.events import PeerLost
from comfy_cluster.transport.handle import Handle
from comfy_cluster.wire import MessageType
from comfy_cluster.work.host import Phase, PromptState
from comfy_cluster.work.service import ClusterWork
from comfy_cluster.work.work import Work
from comfy_cluster.workflows.prompt import Prompt
from tests.unit.cluster.fake_transport import FakeClusters, FakeTransport
from tests.unit.work.fake_comfyui import FakeComfyUI
from tests.unit.work.gates import LOOK, WAIT

HEARTBEAT = 0.02  # seconds: what is believed of lost peers waits for two of them


class Instances:
    """`count` instances; index 0 is the leader."""

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        lacks: Mapping[int, Sequence[str]] | None = None,
        models: Mapping[int, Sequence[str]] | None = None,
        files: Mapping[str, Any] | None = None,
        images: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
        is_connected: bool = True,
        **settings: object,
    ) -> None:
        """`settings` are fields of ClusterConfig."""
        self.hosts = [
            FakeComfyUI(
                index,
                seed=seed * 100 + index,
                lacks=(lacks or {}).get(index, ()),
                models=(models or {}).get(index, ("a", "b")),
                files=files if index == 0 else None,
                images=images if index == 0 else None,
            )
            for index in range(count)
        ]
        self.joined: FakeClusters | None = None
        self.works: list[Work] = []
        if count == 1:
            self.works = [Work(self.hosts[0])]
        else:
            settings = {"heartbeat_interval": HEARTBEAT, **settings}
            self.joined = FakeClusters(count, seed=seed, **settings)
            pairs = zip(self.joined.clusters, self.hosts, strict=True)
            self.works = [ClusterWork(cluster, host) for cluster, host in pairs]
        for host, work in zip(self.hosts, self.works, strict=True):
            host.install(work)
        self._parted: set[frozenset[int]] = set()  # pairs that hear nothing of each other
        for transport in () if self.joined is None else self.joined.network.transports.values():
            self._make_losable(transport)
        self._is_connected = is_connected
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Instances:
        if self.joined is not None:
            self._stack.enter_context(self.joined)
        for host in self.hosts:
            self._stack.enter_context(host)
        if self._is_connected:
            self.connect()
        return self

    def connect(self, *pairs: tuple[int, int]) -> None:
        """Connects those, or all of them."""
        if self.joined is None:
            return
        if not pairs:
            self.joined.connect_all(WAIT)
        for pair in pairs:
            self.joined.network.connect(*pair)
        assert self.joined.network.flush(WAIT)

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.wait_until_over()
        finally:
            for host in self.hosts:
                host.validation.open()
                host.computing.open()
            self._stack.close()

    @property
    def leader(self) -> FakeComfyUI:
        return self.hosts[0]

    @property
    def clusters(self) -> list[Cluster]:
        return [] if self.joined is None else self.joined.clusters

    # What happens to them.

    def run(self, prompt: Prompt) -> dict[str, list[Any]]:
        """What output nodes of the leader got, once its prompt has succeeded."""
        prompt_id = self.leader.queue(prompt)
        return self.results_of(prompt_id)

    def results_of(self, prompt_id: str) -> dict[str, list[Any]]:
        """The same of a prompt that was queued before."""
        state = self.leader.wait_for(prompt_id)
        assert state.phase is Phase.SUCCEEDED, state
        return self.leader.records[prompt_id].saved

    def failure(self, prompt: Prompt) -> PromptState:
        """How the leader's prompt failed."""
        state = self.leader.run(prompt)
        assert state.phase is Phase.FAILED, state
        return state

    def lose(self, instance: int) -> None:
        """Nobody hears of it any more, nor it of anybody; done when all have noticed."""
        assert self.joined is not None
        network = self.joined.network
        self._parted |= {frozenset({instance, each}) for each in self._others(instance)}
        network.lose(instance)
        for other in self._others(instance):
            transport = network.transports[instance]
            network.call(lambda t=transport, o=other: t.report(PeerLost(o, "silent for 3.0 s")))  # type: ignore[misc]
        assert network.flush(WAIT)

    def bring_back(self, instance: int) -> None:
        """It is connected again, to those that are connected."""
        assert self.joined is not None
        for other in self._others(instance):
            self._parted.discard(frozenset({instance, other}))
            self.joined.network.connect(instance, other)
        assert self.joined.network.flush(WAIT)

    def _make_losable(self, transport: FakeTransport) -> None:
        send = transport.send_message

        def send_if_there(
            peer: int, message_type: MessageType, payload: bytes, *, require_ack: bool = True
        ) -> Handle[None]:
            if frozenset({transport.index, peer}) in self._parted:
                text = f"{message_type.name} to instance {peer}: it is not there"
                return Handle.failed(errors.PeerLost(text, peer=peer))
            return send(peer, message_type, payload, require_ack=require_ack)

        transport.send_message = send_if_there  # type: ignore[method-assign]

    def _others(self, instance: int) -> list[int]:
        return [each for each in range(len(self.hosts)) if each != instance]

    def orders_at(self, instance: int) -> int:
        """Orders that are under way at a follower."""
        assert self.joined is not None
        transport = self.joined.network.transports[instance]
        return len(_following_of(transport)._works)

    def shorten_grace(self, prompt_id: str) -> None:
        """What the leader's prompt waits for from followers that have ended is given up soon."""
        run: Any = self.works[0]._runs[prompt_id]
        for each in getattr(run, "_runs", {"": run}).values():
            each._grace.seconds = LOOK

    # What must be true at the end.

    def wait_until_over(self) -> None:
        """Until nothing is under way any more, anywhere; else this fails, and names what is."""
        deadline = time.monotonic() + WAIT
        while (left := list(self._left())) and time.monotonic() < deadline:
            threading.Event().wait(LOOK)
        assert not left, left

    def _left(self) -> Iterator[str]:
        for host, work in zip(self.hosts, self.works, strict=True):
            name = f"instance {host.index}"
            if not host.is_idle:
                yield f"{name}: a prompt"
            if work._runs:
                yield f"{name}: runs {list(work._runs.values())}"
            if work.files._runs:
                yield f"{name}: files"
            if isinstance(work, ClusterWork) and work._leading and work._leading._assignments:
                yield f"{name}: assignments {list(work._leading._assignments)}"
        for cluster in self.clusters:
            yield from self._left_in(cluster)

    def _left_in(self, cluster: Cluster) -> Iterator[str]:
        assert self.joined is not None
        name = f"instance {cluster.instance_index}"
        if cluster.state not in (InstanceState.IDLE, InstanceState.POPULATING):
            yield f"{name} is {cluster.state.value}"
        if cluster._jobs._jobs:
            yield f"{name}: jobs {list(cluster._jobs._jobs)}"
        if not cluster.is_leader and self.orders_at(cluster.instance_index):
            yield f"{name}: orders"


def _following_of(transport: FakeTransport) -> Any:
    """Who listens to orders there."""
    listener: Any = transport.message_listeners[MessageType.DISTRIBUTE_PROMPT][0]
    return listener.__self__


def single_run(prompt: Prompt, **options: Any) -> dict[str, list[Any]]:
    """What output nodes get on one instance without a cluster."""
    with Instances(1, **options) as alone:
        return alone.run(prompt)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal bit for bit, with all that is in them."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
