"""Nodes that cut a batch and give every instance its slice.

On followers, and in ComfyUI's expansions, the same classes receive slices or tell positions: which
of these a node does is known to the run of its prompt (`work/`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_cluster.nodes.base import HIDDEN, AlwaysRuns, InputTypes, described
from comfy_cluster.work.kinds import IMAGES, LATENTS, MASKS, BatchKind


class FanOutNode(AlwaysRuns):
    """What the three have in common. Lists are fanned out item by item."""

    KIND: ClassVar[BatchKind]
    INPUT_NAME: ClassVar[str]
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        tooltip = f"The {cls.KIND.name} to cut. Followers make none: they receive their slice."
        return {
            # Lazy: in a whole workflow followers need not make what the leader sends.
            "required": {
                cls.INPUT_NAME: described(cls.RETURN_TYPES[0], tooltip, lazy=True),
            },
            "hidden": HIDDEN,
        }

    async def check_lazy_status(self, **inputs: Any) -> list[str]:
        """The input, unless it comes from the leader."""
        run, call = await self.run_of(inputs)
        return [self.INPUT_NAME] if run.needs_input(call) else []

    async def execute(self, **inputs: Any) -> tuple[list[Any]]:
        run, call = await self.run_of(inputs)
        slices = await run.fan_out(call, self.KIND, inputs[self.INPUT_NAME])
        return (slices or [self.work.host.stop_blocked()],)


_DESCRIPTION = (
    "Cuts the batch evenly over all instances; each runs the nodes behind this one on its slice, "
    "up to the Cluster Fan In or Cluster Gather node. With one instance it passes the batch on."
)


class ClusterFanOutImage(FanOutNode):
    """Fan-out of images."""

    TITLE = "Cluster Fan Out Image"
    DESCRIPTION = _DESCRIPTION
    CATEGORY = "Cluster/Image"
    KIND = IMAGES
    INPUT_NAME = "images"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image_slice",)
    OUTPUT_TOOLTIPS = ("The images that this instance works on.",)


class ClusterFanOutLatent(FanOutNode):
    """Fan-out of latents."""

    TITLE = "Cluster Fan Out Latent"
    DESCRIPTION = (
        f"{_DESCRIPTION} Each latent keeps its place in the batch, so that KSampler draws the same "
        "noise for it as on one machine."
    )
    CATEGORY = "Cluster/Latent"
    KIND = LATENTS
    INPUT_NAME = "latent"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent_slice",)
    OUTPUT_TOOLTIPS = ("The latents that this instance works on.",)


class ClusterFanOutMask(FanOutNode):
    """Fan-out of masks."""

    TITLE = "Cluster Fan Out Mask"
    DESCRIPTION = _DESCRIPTION
    CATEGORY = "Cluster/Mask"
    KIND = MASKS
    INPUT_NAME = "masks"
    RETURN_TYPES = ("MASK",)
    RETURN_NAMES = ("mask_slice",)
    OUTPUT_TOOLTIPS = ("The masks that this instance works on.",)
