"""What one prompt is to the cluster nodes in it: a `Run`, found by the prompt's id."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.host import Host
from comfy_cluster.work.kinds import BatchKind
from comfy_cluster.workflows.prompt import Prompt

T = TypeVar("T")

INTERRUPT_POLL = 0.1  # seconds: nothing else looks at the flag while a node waits
QUIET_POLLS = 10  # in a row, until what has not run is taken for what will not run


@dataclass(frozen=True, slots=True)
class NodeCall:
    """One call of a node: which node of which prompt."""

    prompt_id: str
    node_id: str
    prompt: Prompt
    """The whole prompt, with the nodes that others were expanded to so far."""
    display_id: str
    """The node that the user sees for it."""
    original: Prompt
    """The prompt as it was queued."""
    prefix: str = ""
    """What ComfyUI has before the ids above: nodes of a workflow file that runs in a prompt."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """Nodes that make a node's result (ComfyUI's node expansion)."""

    nodes: Mapping[str, Any]
    output: Any
    """The link that is the result."""


class Run(Protocol):
    """What the collectives do in one prompt. Async methods are for nodes, `close` for any thread.

    Values are lists, as ComfyUI's list nodes have them.
    """

    def needs_input(self, call: NodeCall) -> bool:
        """Whether a node that distributes needs its own input here, or receives it."""

    async def fan_out(self, call: NodeCall, kind: BatchKind, values: list[Any]) -> list[Any]:
        """This instance's slices; [] if it gets nothing."""

    async def fan_in(
        self, call: NodeCall, kind: BatchKind, values: list[Any]
    ) -> list[Any] | Expansion:
        """On the leader all results joined; elsewhere the own ones."""

    async def gather(
        self, call: NodeCall, kind: BatchKind, values: list[Any]
    ) -> list[Any] | Expansion:
        """A list with each instance's result."""

    async def broadcast(self, call: NodeCall, value: Any) -> Any:
        """The leader's value."""

    async def listen(self, call: NodeCall) -> Any:
        """What the workflow's broadcast node sends."""

    def close(self, reason: str, *, succeeded: bool = False) -> None:
        """The prompt is over: ends what is under way. Twice is fine."""


def new_prompt_id() -> str:
    """A UUID in its canonical form, which newer ComfyUI insists on."""
    return str(uuid.uuid4())


class Quiet:
    """Notices that nothing runs in a prompt any more but nodes that wait for it. A context."""

    def __init__(
        self, call: NodeCall, host: Host, waiting: set[str], on_quiet: Callable[[], object]
    ) -> None:
        """`waiting`: the ids of all nodes of the prompt that wait so; this one's is added.

        `on_quiet()` is called by `look` when that has lasted, and again when it lasts.
        """
        self._call = call
        self._host = host
        self._waiting = waiting
        self._on_quiet = on_quiet
        self._count = 0

    def __enter__(self) -> Quiet:
        self._waiting.add(self._call.prefix + self._call.node_id)
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.discard(self._call.prefix + self._call.node_id)

    def look(self) -> None:
        """To be called every `INTERRUPT_POLL` seconds."""
        is_alone = self._host.is_alone(self._call.prompt_id, self._waiting)
        self._count = self._count + 1 if is_alone else 0
        if self._count == QUIET_POLLS:
            self._count = 0
            self._on_quiet()


async def wait(handle: Handle[T], host: Host, *, on_tick: Callable[[], object] | None = None) -> T:
    """The outcome of a handle, unless the user interrupts. In nodes only.

    `on_tick` is called every `INTERRUPT_POLL` seconds.
    """
    waiting = asyncio.ensure_future(_outcome_of(handle))
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=INTERRUPT_POLL)
            if done:
                if waiting.exception() is not None:  # perhaps only because of the interrupt
                    host.raise_if_interrupted()
                return waiting.result()
            if on_tick is not None:
                on_tick()
            host.raise_if_interrupted()
    finally:
        waiting.cancel()


async def _outcome_of(handle: Handle[T]) -> T:
    return await handle
