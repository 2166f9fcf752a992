"""A prompt that runs on this instance alone: collectives return what they were given.

That is every prompt of a cluster of one, and on followers what their own users queue.
"""

from __future__ import annotations

import threading
from typing import Any

from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.host import Host
from comfy_cluster.work.kinds import BatchKind
from comfy_cluster.work.run import NodeCall, Quiet, wait
from comfy_cluster.workflows.broadcasts import broadcast_heard_by
from comfy_cluster.workflows.rewrite import with_outputs_only


class LocalBroadcasts:
    """What the broadcast nodes of one prompt on this instance have sent. Thread-safe."""

    def __init__(self) -> None:
        self._handles: dict[str, Handle[Any]] = {}
        self._lock = threading.Lock()
        self.waiting: set[str] = set()
        """Nodes that do nothing but wait for a broadcast, or for followers."""

    def of(self, node_id: str) -> Handle[Any]:
        """Done with the node's value once it has run."""
        with self._lock:
            return self._handles.setdefault(node_id, Handle(f"broadcast of node {node_id}"))

    def put(self, node_id: str, value: Any) -> None:
        """The node has run, perhaps once more."""
        with self._lock:
            handle = self._handles.get(node_id)
            if handle is None or handle.done():
                self._handles[node_id] = Handle.completed(value)
                return
        handle.set_result(value)

    async def hear(self, source: str, call: NodeCall, host: Host) -> Any:
        """The node's value; blocked where it does not run, such as behind blocked values."""

        def block() -> None:
            self.put(source, host.stop_blocked())

        with Quiet(call, host, self.waiting, block) as quiet:
            return await wait(self.of(source), host, on_tick=quiet.look)

    def close(self, reason: str) -> None:
        for handle in list(self._handles.values()):
            handle.cancel(reason)


class SoloRun:
    """See `run.Run`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._broadcasts = LocalBroadcasts()

    def needs_input(self, call: NodeCall) -> bool:
        return True

    async def fan_out(self, call: NodeCall, kind: BatchKind, values: list[Any]) -> list[Any]:
        return values

    async def fan_in(self, call: NodeCall, kind: BatchKind, values: list[Any]) -> list[Any]:
        return values

    async def gather(self, call: NodeCall, kind: BatchKind, values: list[Any]) -> list[Any]:
        return values

    async def broadcast(self, call: NodeCall, value: Any) -> Any:
        self._broadcasts.put(call.node_id, value)
        return value

    async def listen(self, call: NodeCall) -> Any:
        outputs = self._host.requested_outputs(call.prompt_id)
        # A broadcast that does not run would never be heard.
        will_run = call.prompt if outputs is None else with_outputs_only(call.prompt, outputs)
        source = broadcast_heard_by(
            {**will_run, call.node_id: call.prompt[call.node_id]}, call.node_id
        )
        return await self._broadcasts.hear(source, call, self._host)

    def close(self, reason: str, *, succeeded: bool = False) -> None:
        self._broadcasts.close(reason)
