"""Images and masks for tests, from files that the tests put into one instance's input folder."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import numpy as np
import torch
from PIL import Image

from .types import Inputs


class TestPhotographs:
    """A batch of photographs, from the PNG files of a folder below ComfyUI's input folder."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "count": ("INT", {"default": 1, "min": 1, "max": 1000}),
                "first": ("INT", {"default": 0, "min": 0, "max": 1000}),
                "folder": ("STRING", {"default": "photographs"}),
            }
        }

    def execute(self, count: int, first: int, folder: str) -> tuple[torch.Tensor]:
        paths = sorted(Path(folder_paths.get_input_directory(), folder).glob("*.png"))
        wanted = paths[first : first + count]
        if len(wanted) < count:
            raise RuntimeError(f"there are only {len(paths)} photographs in {folder!r} here")
        levels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in wanted])
        return (torch.from_numpy(levels.astype(np.float32) / 255.0),)


class TestMasks:
    """The brightness of images as masks."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": ("IMAGE",)}}

    def execute(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (images[..., :3].mean(dim=-1),)


class TestImageList:
    """A batch as a ComfyUI list of batches of one image: what follows runs once for each."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": ("IMAGE",)}}

    def execute(self, images: torch.Tensor) -> tuple[list[torch.Tensor]]:
        return ([images[index : index + 1] for index in range(len(images))],)


class TestChoice:
    """Asks for one of the files of this instance, as model loaders do; passes its images on."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        folder = Path(folder_paths.get_input_directory(), "choices")
        names = sorted(path.name for path in folder.glob("*"))
        return {"required": {"images": ("IMAGE",), "file": (names,)}}

    def execute(self, images: torch.Tensor, file: str) -> tuple[torch.Tensor]:
        return (images,)


IMAGE_NODES = (TestPhotographs, TestMasks, TestImageList, TestChoice)
