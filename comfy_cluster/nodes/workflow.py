"""Nodes that run whole workflows on every instance."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from comfy_cluster.errors import WorkflowError
from comfy_cluster.nodes.base import ANY, HIDDEN, AlwaysRuns, InputTypes, described
from comfy_cluster.work.run import Expansion

_RESULTS = (
    "What the output nodes of each follower made: by the instance's number, then by node id. The "
    "leader's own are on its page.",
)


class ClusterExecuteWorkflow(AlwaysRuns):
    """A workflow file, on every instance."""

    TITLE = "Cluster Execute Workflow"
    DESCRIPTION = (
        "Runs a workflow file of the leader's workflow folder on every instance, the leader "
        "included, and waits for all of them. The file may be a saved workflow or an API export."
    )
    CATEGORY = "Cluster/Workflow"
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("results",)
    OUTPUT_TOOLTIPS = _RESULTS
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "workflow_path": described(
                    "STRING",
                    "The file, below ComfyUI's workflow folder.",
                    default="",
                    placeholder="my workflow.json",
                ),
                "inputs": described(
                    "STRING",
                    'Other values for some inputs, as JSON: {"node_id.input": value}. A dict from '
                    "another node does too.",
                    default="{}",
                    multiline=True,
                ),
            },
            "optional": {
                "trigger": described(ANY, "Anything; the workflow runs when it is there.")
            },
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Mapping[str, str]) -> bool | str:
        """ComfyUI's own check would let no dict through to `inputs`."""
        return True

    async def execute(
        self, workflow_path: str, inputs: Any = "{}", trigger: Any = None, **rest: Any
    ) -> Any:
        call = self.call(**{name: rest[name] for name in HIDDEN})
        result = await self.work.files.execute(call, workflow_path, _parsed(inputs))
        if isinstance(result, Expansion):
            return {"result": (result.output,), "expand": result.nodes}
        return (result,)


def _parsed(inputs: Any) -> Mapping[str, Any]:
    if isinstance(inputs, str):
        try:
            # ComfyUI turns a dict that is a constant into Python's text for it.
            inputs = ast.literal_eval(inputs) if inputs[:2] == "{'" else json.loads(inputs or "{}")
        except (ValueError, SyntaxError) as error:
            raise WorkflowError(
                f'inputs: not JSON ({error}); expected such as {{"3.seed": 7}}'
            ) from None
    if not isinstance(inputs, Mapping):
        raise WorkflowError(
            f'inputs: expected a dict such as {{"3.seed": 7}}, got {type(inputs).__name__}'
        )
    return inputs


class ClusterExecuteCurrentWorkflow(AlwaysRuns):
    """This workflow, on every instance."""

    TITLE = "Cluster Execute Current Workflow"
    DESCRIPTION = (
        "Makes every instance run this whole workflow, as Queue Cluster does, whenever it runs on "
        "the leader; and waits for the followers."
    )
    CATEGORY = "Cluster/Workflow"
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("results",)
    OUTPUT_TOOLTIPS = _RESULTS
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "trigger": described(ANY, "Anything; the followers' results come after it.")
            },
            "hidden": HIDDEN,
        }

    async def execute(self, trigger: Any, **hidden: Any) -> tuple[dict[str, Any]]:
        return (await self.work.followers_results(self.call(**hidden)),)
