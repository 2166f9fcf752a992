"""Nodes that collect what the instances made of their slices, and nodes that make a list of it.

They are output nodes: on followers a region ends with them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_cluster.nodes.base import HIDDEN, AlwaysRuns, InputTypes, described
from comfy_cluster.work.kinds import IMAGES, LATENTS, MASKS, BatchKind
from comfy_cluster.work.run import Expansion, NodeCall, Run


class EndNode(AlwaysRuns):
    """What the six have in common."""

    KIND: ClassVar[BatchKind]
    INPUT_NAME: ClassVar[str]
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        tooltip = f"The {cls.KIND.name} that each instance made."
        return {
            "required": {cls.INPUT_NAME: described(cls.RETURN_TYPES[0], tooltip)},
            "hidden": HIDDEN,
        }

    async def execute(self, **inputs: Any) -> Any:
        run, call = await self.run_of(inputs)
        result = await self.collect(run, call, inputs[self.INPUT_NAME])
        if isinstance(result, Expansion):
            return {"result": (result.output,), "expand": result.nodes}
        return (result,)

    async def collect(self, run: Run, call: NodeCall, values: list[Any]) -> list[Any] | Expansion:
        """The collective itself."""
        raise NotImplementedError


class FanInNode(EndNode):
    """Joins in the order of the batch that was fanned out."""

    async def collect(self, run: Run, call: NodeCall, values: list[Any]) -> list[Any] | Expansion:
        return await run.fan_in(call, self.KIND, values)


class GatherNode(EndNode):
    """Makes a list with an element for each instance."""

    async def collect(self, run: Run, call: NodeCall, values: list[Any]) -> list[Any] | Expansion:
        return await run.gather(call, self.KIND, values)


_FAN_IN = (
    "Collects what all instances made of their slices, and joins it in the order of the batch that "
    "the Cluster Fan Out node cut. Nodes behind it run on the leader only. With one instance it "
    "passes its input on."
)
_GATHER = (
    "Collects what all instances made, as a list with one batch for each: their sizes may differ. "
    "With one instance it is a list of one."
)
_JOINED = "All {} in one batch, in order."
_LISTED = "A list with the {} of each instance."


class ClusterFanInImages(FanInNode):
    """Fan-in of images."""

    TITLE = "Cluster Fan In Images"
    DESCRIPTION = _FAN_IN
    CATEGORY = "Cluster/Image"
    KIND = IMAGES
    INPUT_NAME = "images"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("combined_images",)
    OUTPUT_TOOLTIPS = (_JOINED.format("images"),)


class ClusterFanInLatents(FanInNode):
    """Fan-in of latents."""

    TITLE = "Cluster Fan In Latents"
    DESCRIPTION = _FAN_IN
    CATEGORY = "Cluster/Latent"
    KIND = LATENTS
    INPUT_NAME = "latent"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("combined_latent",)
    OUTPUT_TOOLTIPS = (_JOINED.format("latents"),)


class ClusterFanInMasks(FanInNode):
    """Fan-in of masks."""

    TITLE = "Cluster Fan In Masks"
    DESCRIPTION = _FAN_IN
    CATEGORY = "Cluster/Mask"
    KIND = MASKS
    INPUT_NAME = "masks"
    RETURN_TYPES = ("MASK",)
    RETURN_NAMES = ("combined_masks",)
    OUTPUT_TOOLTIPS = (_JOINED.format("masks"),)


class ClusterGatherImages(GatherNode):
    """All-gather of images."""

    TITLE = "Cluster Gather Images"
    DESCRIPTION = _GATHER
    CATEGORY = "Cluster/Image"
    KIND = IMAGES
    INPUT_NAME = "images"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("all_images",)
    OUTPUT_TOOLTIPS = (_LISTED.format("images"),)


class ClusterGatherLatents(GatherNode):
    """All-gather of latents."""

    TITLE = "Cluster Gather Latents"
    DESCRIPTION = _GATHER
    CATEGORY = "Cluster/Latent"
    KIND = LATENTS
    INPUT_NAME = "latent"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("all_latents",)
    OUTPUT_TOOLTIPS = (_LISTED.format("latents"),)


class ClusterGatherMasks(GatherNode):
    """All-gather of masks."""

    TITLE = "Cluster Gather Masks"
    DESCRIPTION = _GATHER
    CATEGORY = "Cluster/Mask"
    KIND = MASKS
    INPUT_NAME = "masks"
    RETURN_TYPES = ("MASK",)
    RETURN_NAMES = ("all_masks",)
    OUTPUT_TOOLTIPS = (_LISTED.format("masks"),)
