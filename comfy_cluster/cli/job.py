"""The demo's job as all instances know it: the collectives' keys, and the work on one slice.

The leader's part is in `leader.py`, the followers' in `follower.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from comfy_cluster.cli.filters import ink_filter
from comfy_cluster.cluster import CollectiveKey

JOB_ID = "demo"
START = CollectiveKey(JOB_ID, "start")
"""A broadcast: the job begins; its tensor holds the seconds to sleep for each image."""
FAN_OUT = CollectiveKey(JOB_ID, "fan-out")
FAN_IN = CollectiveKey(JOB_ID, "fan-in")


def progress_key(instance: int, done_count: int) -> CollectiveKey:
    """A fan-in of one instance: it has filtered `done_count` images."""
    return CollectiveKey(JOB_ID, "progress", list_index=instance, occurrence=done_count)


def measures_key(instance: int) -> CollectiveKey:
    """A fan-in of one instance, when the leader has its images: what it measured."""
    return CollectiveKey(JOB_ID, "measures", list_index=instance)


def filter_slice(
    images: torch.Tensor,
    *,
    sleep_seconds: float,
    on_image: Callable[[int], object],
    sleep: Callable[[float], object] = time.sleep,
) -> torch.Tensor:
    """The filtered images [b,H,W,C]; b may be 0. `on_image(done_count)` after each.

    One at a time and on one thread (see `filters.py`), as a workflow with batch size 1 does it.
    `sleep_seconds` stand for the time that an accelerator takes for one image.
    """
    filtered = torch.empty_like(images, memory_format=torch.contiguous_format)
    for index, image in enumerate(images):
        filtered[index] = ink_filter(image)
        if sleep_seconds:
            sleep(sleep_seconds)
        on_image(index + 1)
    return filtered
