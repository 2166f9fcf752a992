"""Stand-ins for what the nodes talk to, and a way to call nodes as ComfyUI does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from comfy_cluster.nodes.base import ClusterNode, InputTypes
from comfy_cluster.work.run import NodeCall
from comfy_cluster.work.work import Work
from comfy_cluster.workflows.prompt import Prompt

BLOCKED = "blocked"  # what ComfyUI skips the nodes behind
AnyNode = TypeVar("AnyNode", bound=ClusterNode)


@dataclass
class FakeHost:
    """Remembers what it was asked for."""

    freed: list[tuple[str, bool, bool]] = field(default_factory=list)
    images: Sequence[str] = ("cat.png",)

    def free_now(self, *, unload_models: bool, free_memory: bool) -> None:
        self.freed.append(("now", unload_models, free_memory))

    def free_when_done(self, *, unload_models: bool, free_memory: bool) -> None:
        self.freed.append(("when done", unload_models, free_memory))

    def stop_blocked(self) -> str:
        return BLOCKED

    def image_names(self) -> Sequence[str]:
        return self.images


@dataclass
class FakeWork:
    """One instance of a cluster."""

    host: FakeHost = field(default_factory=FakeHost)
    instance_index: int = 0
    instance_count: int = 1
    expanded: Mapping[str, Any] = field(default_factory=dict)
    """Nodes that others were expanded to so far."""

    def info_text(self) -> str:
        return f"Connected: {self.instance_count}/{self.instance_count} instances"

    def call(self, *, node_id: str, prompt: Prompt, dynprompt: Any) -> NodeCall:
        return NodeCall(
            prompt_id="prompt",
            node_id=node_id,
            prompt={**prompt, **self.expanded},
            display_id=node_id,
            original=prompt,
        )


def make(node_class: type[AnyNode], work: FakeWork | None = None) -> AnyNode:
    """A node of that instance."""
    return node_class(cast(Work, work or FakeWork()))


def execute(node: Any, **inputs: Any) -> Any:
    """What a call of the node returns; inputs as ComfyUI gives them to its class."""
    return asyncio.run(node.execute(**inputs))


def input_types(node_class: type[ClusterNode]) -> InputTypes:
    """The declared inputs of a class, which for one of them depend on ComfyUI's input folder."""
    members = {"_host": classmethod(lambda cls: FakeHost())}
    tested: Any = type(node_class.__name__, (node_class,), members)
    declared: InputTypes = tested.INPUT_TYPES()
    return declared
