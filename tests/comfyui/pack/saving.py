"""Saves what a link carries with its exact bits, so that tests can compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import torch

from .types import ANY, Inputs


class TestSaveTensor:
    """Writes images, masks, latents, numbers or lists of them to `<name>.pt` in the output folder.

    The file has a list: the elements of a ComfyUI list, or the one value. Runs in every prompt.
    """

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"value": (ANY,), "name": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("NaN")

    def execute(self, value: list[Any], name: list[str]) -> dict[str, Any]:
        path = Path(folder_paths.get_output_directory(), f"{name[0]}.pt")
        torch.save([_plain(each) for each in value], path)
        return {"ui": {"saved": [path.name]}}


def _plain(value: Any) -> Any:
    """Without views into larger tensors, which would be saved whole."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


SAVING_NODES = (TestSaveTensor,)
