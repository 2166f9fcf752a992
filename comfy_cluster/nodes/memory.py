"""Nodes that free memory on each instance that runs them.

They are output nodes: they run also where nothing reads their output.
"""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_cluster.nodes.base import ANY, AlwaysRuns, InputTypes, described


class MemoryNode(AlwaysRuns):
    """What both have in common."""

    FREE_MEMORY_TOOLTIP: ClassVar[str]
    CATEGORY = "Cluster/Memory"
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("trigger",)
    OUTPUT_TOOLTIPS = ("The input, unchanged.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "trigger": described(ANY, "Anything; the node runs when it is there."),
                "unload_models": described(
                    "BOOLEAN",
                    "Take all models out of GPU memory. They are loaded again when needed.",
                    default=True,
                ),
                "free_memory": described("BOOLEAN", cls.FREE_MEMORY_TOOLTIP, default=True),
            }
        }


class ClusterFreeNow(MemoryNode):
    """Frees memory in the middle of a workflow."""

    TITLE = "Cluster Free Now"
    DESCRIPTION = (
        "Frees memory as soon as its input is there, on every instance that runs it, and passes "
        "the input on. Put it between two parts of a workflow that need different models."
    )
    FREE_MEMORY_TOOLTIP = "Also give back cached memory that nothing uses."

    async def execute(
        self, trigger: Any, unload_models: bool = True, free_memory: bool = True
    ) -> tuple[Any]:
        self.work.host.free_now(unload_models=unload_models, free_memory=free_memory)
        return (trigger,)


class ClusterFinallyFree(MemoryNode):
    """Frees memory at the end of a workflow."""

    TITLE = "Cluster Finally Free"
    DESCRIPTION = (
        "Frees memory when the whole workflow is done, on every instance that runs it, and "
        "passes its input on at once. The next run loads its models again."
    )
    FREE_MEMORY_TOOLTIP = "Also forget the results that ComfyUI keeps for the next run."

    async def execute(
        self, trigger: Any, unload_models: bool = True, free_memory: bool = True
    ) -> tuple[Any]:
        self.work.host.free_when_done(unload_models=unload_models, free_memory=free_memory)
        return (trigger,)
