"""What all node classes have in common.

Nodes are thin: they hand their inputs to the `Work` of this process and return what it answers.
They import nothing of ComfyUI (V1 classes are plain Python), so tests call them as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfy_cluster.work.run import NodeCall, Run
    from comfy_cluster.work.work import Work

InputTypes = dict[str, dict[str, Any]]

HIDDEN = {"unique_id": "UNIQUE_ID", "prompt": "PROMPT", "dynprompt": "DYNPROMPT"}


class AnyType(str):
    """ComfyUI's `*`: before 0.4 links are refused by `!=`, which is never true of this type.

    It is equal to `*` only: ComfyUI turns a constant into a number where the type `== "INT"`.
    """

    def __ne__(self, other: object) -> bool:
        return False


ANY = AnyType("*")


def only(value: Any) -> Any:
    """The one value of an input that is no list, in a node whose inputs are all lists."""
    return value[0] if isinstance(value, list) else value


def described(type_name: Any, tooltip: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """An input as ComfyUI declares it, with the text that a user sees when pointing at it."""
    return (type_name, {"tooltip": tooltip, **options})


class ClusterNode:
    """Base of the node classes. Subclasses set what is annotated here without a value.

    ComfyUI makes them without arguments; tests give the `Work` to talk to.
    """

    TITLE: ClassVar[str]
    """The display name."""
    DESCRIPTION: ClassVar[str]
    CATEGORY: ClassVar[str] = "Cluster"
    RETURN_TYPES: ClassVar[tuple[Any, ...]]
    RETURN_NAMES: ClassVar[tuple[str, ...]]
    OUTPUT_TOOLTIPS: ClassVar[tuple[str, ...]]
    FUNCTION: ClassVar[str] = "execute"
    # Two such nodes with the same inputs are not one: each has its own place in the workflow.
    NOT_IDEMPOTENT: ClassVar[bool] = True

    def __init__(self, work: Work | None = None) -> None:
        self._work = work

    @property
    def work(self) -> Work:
        """What this process does for the cluster. ClusterError: its settings are wrong."""
        if self._work is not None:
            return self._work
        # Every start of ComfyUI imports the nodes; the cluster, only the start that uses it.
        from comfy_cluster.runtime import get_work

        return get_work()

    def call(self, **hidden: Any) -> NodeCall:
        """This call of the node, from its hidden inputs (`HIDDEN`; lists of one are fine)."""
        plain = {name: only(value) for name, value in hidden.items()}
        return self.work.call(
            node_id=str(plain["unique_id"]), prompt=plain["prompt"], dynprompt=plain["dynprompt"]
        )

    async def run_of(self, inputs: Mapping[str, Any]) -> tuple[Run, NodeCall]:
        """The run of the prompt that this call of the node belongs to, from all of its inputs."""
        return await self.work.run_of(self.call(**{name: inputs[name] for name in HIDDEN}))


class AlwaysRuns(ClusterNode):
    """A node whose last result says nothing of the next: ComfyUI runs it in every prompt."""

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        # A new object each time: ComfyUI compares by identity first, and math.nan is only one.
        return float("NaN")


def class_mappings(*node_classes: type[ClusterNode]) -> dict[str, type[ClusterNode]]:
    """Node ids, which are the names of the classes."""
    return {node_class.__name__: node_class for node_class in node_classes}
