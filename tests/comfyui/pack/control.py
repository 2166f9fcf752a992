"""Nodes that hold, fail, crash, count and sleep, so that tests reach the moments that matter."""

from __future__ import annotations

import os
import time
from typing import Any

import comfy.utils
import torch
from comfy_execution.graph_utils import ExecutionBlocker

from .shared import (
    count_run,
    instance_index,
    names_this_instance,
    pass_gate,
    shared_file,
    sleep_until,
)
from .types import ANY, Inputs

# The colour of the first pixel of an image that TestFail refuses.
MARK = (1.0, 0.0, 1.0)


class TestGate:
    """Waits until a test opens the gate, on the named instances ("1,3"; empty: all)."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = (ANY,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"value": (ANY,), "gate": ("STRING", {}), "instances": ("STRING", {})}}

    def execute(self, value: Any, gate: str, instances: str) -> tuple[Any]:
        if names_this_instance(instances):
            pass_gate(gate)
        return (value,)


class TestBlock:
    """Blocks what comes after it, on the named instances ("1,3"; empty: all)."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": ("IMAGE",), "instances": ("STRING", {})}}

    def execute(self, images: torch.Tensor, instances: str) -> tuple[Any]:
        return (ExecutionBlocker(None) if names_this_instance(instances) else images,)


class TestWarn:
    """Warns as the cluster does."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"text": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, text: str) -> float:
        return float("nan")

    def execute(self, text: str) -> dict[str, Any]:
        from comfy_cluster.runtime import get_host

        get_host().show_warning(text)
        return {}


class TestFail:
    """Raises while the node of this name is broken, on the named instances, or at a marked image.

    With `only_marked` an image whose first pixel has the colour `MARK` is what breaks it.
    """

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "images": ("IMAGE",),
                "name": ("STRING", {}),
                "instances": ("STRING", {}),
                "only_marked": ("BOOLEAN", {"default": False}),
            }
        }

    def execute(
        self, images: torch.Tensor, name: str, instances: str, only_marked: bool
    ) -> tuple[torch.Tensor]:
        marked = (images[:, 0, 0, :3] == torch.tensor(MARK)).all(dim=1).any()
        is_broken = bool(marked) if only_marked else shared_file(f"{name}.broken").exists()
        if is_broken and names_this_instance(instances):
            raise RuntimeError(f"TestFail {name!r} was told to fail on instance {instance_index()}")
        return (images,)


class TestMark:
    """Gives one image of a batch the first pixel that TestFail refuses."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": ("IMAGE",), "position": ("INT", {"default": 0})}}

    def execute(self, images: torch.Tensor, position: int) -> tuple[torch.Tensor]:
        marked = images.clone()
        marked[position, 0, 0, :3] = torch.tensor(MARK)
        return (marked,)


class TestCrash:
    """Ends the process at once while the node of this name is broken, on the named instances."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = (ANY,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"value": (ANY,), "name": ("STRING", {}), "instances": ("STRING", {})}}

    def execute(self, value: Any, name: str, instances: str) -> tuple[Any]:
        if names_this_instance(instances) and shared_file(f"{name}.broken").exists():
            os._exit(1)
        return (value,)


class TestCount:
    """Notes that it ran, and in which process."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = (ANY,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"value": (ANY,), "name": ("STRING", {})}}

    def execute(self, value: Any, name: str) -> tuple[Any]:
        count_run(name)
        return (value,)


class TestSleep:
    """Stands for an accelerator: sleeps for each image, and can be interrupted."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "images": ("IMAGE",),
                "seconds": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 60.0, "step": 0.01}),
                "show_progress": ("BOOLEAN", {"default": False}),
            }
        }

    def execute(
        self, images: torch.Tensor, seconds: float, show_progress: bool
    ) -> tuple[torch.Tensor]:
        bar = comfy.utils.ProgressBar(len(images)) if show_progress else None
        moment = time.monotonic()
        for _ in range(len(images)):
            moment += seconds
            sleep_until(moment)
            if bar is not None:
                bar.update(1)
        return (images,)


class TestInstance:
    """The index of the instance that runs it; never cached."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> float:
        return float("NaN")

    def execute(self) -> tuple[int]:
        return (instance_index(),)


CONTROL_NODES = (
    TestGate,
    TestBlock,
    TestWarn,
    TestFail,
    TestMark,
    TestCrash,
    TestCount,
    TestSleep,
    TestInstance,
)
