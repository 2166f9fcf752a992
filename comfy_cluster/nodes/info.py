"""The node that shows the cluster."""

from __future__ import annotations

from typing import Any

from comfy_cluster.nodes.base import AlwaysRuns, InputTypes


class ClusterInfo(AlwaysRuns):
    """Shows the settings and the state of this instance, and its connections."""

    TITLE = "Cluster Info"
    DESCRIPTION = (
        "Shows this instance's settings and state, how many instances are connected, and each "
        "one's address, role, round trip time and traffic. Also tells the instance's index, for "
        "seeds and file names that differ between instances."
    )
    RETURN_TYPES = ("STRING", "INT", "INT")
    RETURN_NAMES = ("info", "instance_index", "instance_count")
    OUTPUT_TOOLTIPS = (
        "The same text that the node shows.",
        "This instance: 0 is the leader.",
        "Instances in the cluster, connected or not.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {"required": {}}

    async def execute(self) -> dict[str, Any]:
        text = self.work.info_text()
        result = (text, self.work.instance_index, self.work.instance_count)
        return {"ui": {"text": [text]}, "result": result}
