"""The work on one slice, and the names of its collectives."""

from __future__ import annotations

import torch

from comfy_cluster.cli import job
from comfy_cluster.cli.filters import ink_filter
from comfy_cluster.cli.images import generate_pictures


def test_a_slice_is_filtered_image_by_image_with_a_sleep_for_each() -> None:
    batch = generate_pictures(3, 32, seed=1).batch
    done: list[int] = []
    slept: list[float] = []
    filtered = job.filter_slice(batch, sleep_seconds=0.25, on_image=done.append, sleep=slept.append)
    assert torch.equal(filtered, torch.stack([ink_filter(image) for image in batch]))
    assert done == [1, 2, 3]
    assert slept == [0.25] * 3


def test_without_images_there_is_nothing_to_do() -> None:
    done: list[float] = []
    filtered = job.filter_slice(
        torch.empty(0, 8, 8, 3), sleep_seconds=9.0, on_image=done.append, sleep=done.append
    )
    assert filtered.shape == (0, 8, 8, 3)
    assert done == []


def test_every_collective_of_the_job_has_a_key_of_its_own() -> None:
    keys = [job.START, job.FAN_OUT, job.FAN_IN]
    keys += [job.measures_key(index) for index in range(4)]
    keys += [job.progress_key(index, done) for index in range(4) for done in range(4)]
    assert len(set(keys)) == len(keys)
