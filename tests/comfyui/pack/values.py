"""Latents with all that may be in them, and images that tell which instance made them."""

from __future__ import annotations

from typing import Any

import torch

from .shared import instance_index
from .types import Inputs


class TestLatent:
    """A latent of random samples, with the further keys that are asked for."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "count": ("INT", {"default": 4, "min": 1, "max": 100}),
                "with_batch_index": ("BOOLEAN", {"default": False}),
                "noise_masks": ("INT", {"default": 0, "min": 0, "max": 100}),
                "frames": ("INT", {"default": 0, "min": 0, "max": 100}),
                "with_extras": ("BOOLEAN", {"default": False}),
            }
        }

    def execute(
        self, count: int, with_batch_index: bool, noise_masks: int, frames: int, with_extras: bool
    ) -> tuple[dict[str, Any]]:
        chance = torch.Generator().manual_seed(count)
        frame_shape = (frames,) if frames else ()
        samples = torch.randn(count, 4, *frame_shape, 8, 8, generator=chance)
        latent: dict[str, Any] = {"samples": samples}
        if with_batch_index:
            latent["batch_index"] = [3 * index + 1 for index in range(count)]
        if noise_masks:
            latent["noise_mask"] = torch.rand(noise_masks, 1, 64, 64, generator=chance)
        if with_extras:
            latent |= {"type": "test", "row_values": torch.arange(float(count))}
        return (latent,)


class TestSignedImage:
    """One image, grey, whose brightness is the instance index in hundredths."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        side = ("INT", {"default": 8, "min": 1, "max": 512})
        return {"required": {"height": side, "width": side}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("NaN")

    def execute(self, height: int, width: int) -> tuple[torch.Tensor]:
        return (torch.full((1, height, width, 3), instance_index() / 100),)


class TestSizedByInstance:
    """Images whose height depends on the instance: such parts cannot be joined."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": ("IMAGE",)}}

    def execute(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (images[:, : 8 + instance_index()],)


VALUE_NODES = (TestLatent, TestSignedImage, TestSizedByInstance)
