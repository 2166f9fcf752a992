"""The filter gives the same bits however the work is cut up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from comfy_cluster.cli.filters import ink_filter
from comfy_cluster.cli.images import generate_pictures


@pytest.fixture
def batch() -> torch.Tensor:
    return generate_pictures(4, 48, seed=3).batch


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_result_is_a_picture_and_another_one(batch: torch.Tensor) -> None:
    for image in batch:
        filtered = ink_filter(image)
        assert filtered.shape == image.shape
        assert filtered.dtype == torch.float32
        assert 0.0 <= filtered.min() <= filtered.max() <= 1.0
        assert (filtered - image).abs().max() > 0.05


def test_the_input_is_not_changed(batch: torch.Tensor) -> None:
    before = batch.clone()
    ink_filter(batch[0])
    assert torch.equal(batch, before)


def test_neither_memory_layout_nor_thread_count_changes_a_bit(
    batch: torch.Tensor, two_threads: None
) -> None:
    image = batch[1]
    expected = ink_filter(image)
    # Other strides, and memory that is not aligned for vector instructions.
    channels_first = image.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    shifted = torch.empty(image.numel() + 1)[1:].view_as(image).copy_(image)
    torch.set_num_threads(1)
    assert torch.equal(ink_filter(channels_first), expected)
    assert torch.equal(ink_filter(shifted), expected)


def test_a_plain_area_stays_plain() -> None:
    filtered = ink_filter(torch.full((20, 30, 3), 0.5))
    assert torch.allclose(filtered, torch.full((20, 30, 3), 0.5), atol=1e-5)


def test_edges_get_dark_lines() -> None:
    image = torch.full((32, 32, 3), 0.4)
    image[:, 16:] = 0.8
    filtered = ink_filter(image)
    assert filtered[16, 15, 0] < 0.2
    assert filtered[16, 2, 0] == pytest.approx(0.4, abs=0.01)
