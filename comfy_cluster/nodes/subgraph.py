"""Nodes that mark a part of a workflow and run it again elsewhere in the same workflow."""

from __future__ import annotations

from typing import Any

from comfy_cluster.nodes.base import (
    ANY,
    HIDDEN,
    AlwaysRuns,
    ClusterNode,
    InputTypes,
    described,
)
from comfy_cluster.workflows.subgraphs import COLLECTS, expand_in_place

CATEGORY = "Cluster/Workflow"


class ClusterStartSubgraph(ClusterNode):
    """Opens a reusable part."""

    TITLE = "Cluster Start Subgraph"
    DESCRIPTION = (
        "Opens a reusable part of the workflow: all nodes between this one and the Cluster End "
        "Subgraph that it leads to. Passes its input on."
    )
    CATEGORY = CATEGORY
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("output",)
    OUTPUT_TOOLTIPS = ("The input; in a use of this part, that use's input.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "input": described(ANY, "What the part works on."),
                "subgraph_id": described(
                    "STRING",
                    "A name for this part; no other part of the workflow may have it.",
                    socketless=True,
                ),
            }
        }

    async def execute(self, input: Any, subgraph_id: str) -> tuple[Any]:
        return (input,)


class ClusterEndSubgraph(ClusterNode):
    """Closes a reusable part."""

    TITLE = "Cluster End Subgraph"
    DESCRIPTION = (
        "Closes the reusable part that a Cluster Start Subgraph node opened. Passes its input on."
    )
    CATEGORY = CATEGORY
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("output",)
    OUTPUT_TOOLTIPS = ("The input, unchanged.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {"required": {"input": described(ANY, "The result of the part.")}}

    async def execute(self, input: Any) -> tuple[Any]:
        return (input,)


class ClusterUseSubgraph(AlwaysRuns):
    """Runs a reusable part once more, on another input.

    ComfyUI's cache does not know what it depends on, namely the part; so it always runs, and its
    copies of the part's nodes are cached.
    """

    TITLE = "Cluster Use Subgraph"
    DESCRIPTION = (
        "Runs the part of the workflow with that subgraph_id here too, on another input. What "
        "the part reads besides, such as models and prompts, is shared. Parts may use other parts."
    )
    CATEGORY = CATEGORY
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("output",)
    OUTPUT_TOOLTIPS = ("What the part makes of this input.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "input": described(ANY, "What the part works on here."),
                "subgraph_id": described(
                    "STRING",
                    "The name that the part's Cluster Start Subgraph node gives it.",
                    socketless=True,
                ),
            },
            "hidden": {**HIDDEN, COLLECTS: "CLUSTER_COLLECTS"},
        }

    async def execute(self, input: list[Any], **inputs: Any) -> Any:
        if COLLECTS in inputs:
            return ([input],)
        call = self.call(**{name: inputs[name] for name in HIDDEN})
        known = {**call.original, call.node_id: call.prompt[call.node_id]}
        expansion = expand_in_place(known, call.node_id)
        return {"result": (expansion.output,), "expand": expansion.nodes}
