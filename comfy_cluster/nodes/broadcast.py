"""Nodes by which the leader gives the same to every instance."""

from __future__ import annotations

from typing import Any

from comfy_cluster.nodes.base import ANY, HIDDEN, AlwaysRuns, InputTypes, described
from comfy_cluster.workflows.rewrite import RECEIVED


class ClusterBroadcastTensor(AlwaysRuns):
    """An image, latent, mask or tensor of the leader, on every instance.

    An output node: others may listen to it where nothing reads its output.
    """

    TITLE = "Cluster Broadcast Tensor"
    DESCRIPTION = (
        "Gives what the leader has to every instance: an image, a latent, a mask or any tensor. "
        "Only the leader makes it. With one instance it passes its input on."
    )
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("tensor",)
    OUTPUT_TOOLTIPS = ("The leader's value, on every instance.",)
    OUTPUT_NODE = True
    # Lists whole: one call is one collective.
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        tooltip = "What every instance is to have; only the leader's counts."
        return {
            "required": {"tensor": described(ANY, tooltip, lazy=True)},
            "hidden": HIDDEN,
        }

    async def check_lazy_status(self, tensor: Any = None, **hidden: Any) -> list[str]:
        """The input, unless it comes from the leader."""
        run, call = await self.run_of(hidden)
        return ["tensor"] if run.needs_input(call) else []

    async def execute(self, tensor: Any = None, **hidden: Any) -> tuple[Any]:
        run, call = await self.run_of(hidden)
        return (await run.broadcast(call, tensor),)


class ClusterListenTensorBroadcast(AlwaysRuns):
    """A receiving end without an input."""

    TITLE = "Cluster Listen Tensor Broadcast"
    DESCRIPTION = (
        "Has what the workflow's Cluster Broadcast Tensor node gives, without a link to it. Of "
        "several broadcasts it hears the one of its own place, in the order of the nodes' ids."
    )
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("tensor",)
    OUTPUT_TOOLTIPS = ("The value that was broadcast.",)
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {"required": {}, "hidden": HIDDEN}

    async def execute(self, **hidden: Any) -> tuple[Any]:
        run, call = await self.run_of(hidden)
        return (await run.listen(call),)


class ClusterBroadcastLoadedImage(AlwaysRuns):
    """An image file of the leader, on every instance."""

    TITLE = "Cluster Broadcast Loaded Image"
    DESCRIPTION = (
        "Loads an image of the leader's input folder and gives it to every instance: followers "
        "need no file."
    )
    CATEGORY = "Cluster/Image"
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The picture.", "Its transparency: 1 where nothing is to be seen.")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        tooltip = "A file of the leader's input folder."
        names = list(cls._host().image_names())
        return {
            "required": {"image": described(names, tooltip, image_upload=True)},
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        """The leader's file is looked for where the leader runs."""
        host = cls._host()
        if image == RECEIVED or not host.is_leader:
            return True
        return host.check_image(image) or True

    @classmethod
    def _host(cls) -> Any:
        from comfy_cluster.runtime import get_host

        return get_host()

    async def execute(self, image: str, **hidden: Any) -> tuple[Any, Any]:
        run, call = await self.run_of(hidden)
        loaded = self.work.host.load_image(image) if run.needs_input(call) else None
        found = await run.broadcast(call, loaded)
        is_pair = isinstance(found, (tuple, list))
        return tuple(found) if is_pair else (found, found)  # blocked: it did not run on the leader
