"""8-bit levels: exactly k / 255 or not at all; rounding only when asked for."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.codec.levels import (
    exact_levels,
    item_layout,
    levels_to_values,
    rounded_levels,
)

ALL_LEVELS = torch.arange(256, dtype=torch.uint8)


def test_values_are_what_numpy_and_torch_divide() -> None:
    values = levels_to_values(ALL_LEVELS, torch.float32)
    levels = np.arange(256).astype(np.float32)
    expected = np.array([level / np.float32(255.0) for level in levels], dtype=np.float32)
    assert values.numpy().tobytes() == expected.tobytes()
    assert values.numpy().tobytes() == (levels / np.float32(255.0)).tobytes()
    assert torch.equal(values, torch.arange(256, dtype=torch.float32) / 255.0)


def test_every_level_is_found_exactly() -> None:
    levels = exact_levels(levels_to_values(ALL_LEVELS, torch.float32))
    assert levels is not None and torch.equal(levels, ALL_LEVELS)


@pytest.mark.parametrize("value", [-0.0, math.nan, math.inf, -math.inf, -1 / 255, 256 / 255, 0.5])
@pytest.mark.parametrize("position", [0, 65_535, 65_536, 99_999])
def test_one_other_value_anywhere_is_not_exact(value: float, position: int) -> None:
    image = torch.zeros(100_000)
    image[position] = value
    assert exact_levels(image) is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 255), st.sampled_from([-1, 1]))
def test_neighbouring_float_is_not_exact(level: int, step: int) -> None:
    bits = struct.unpack("<i", np.float32(level / 255).tobytes())[0]
    neighbour = torch.tensor([bits + step], dtype=torch.int32).view(torch.float32)
    assert exact_levels(neighbour) is None


def test_other_dtypes_than_float32_and_uint8_are_not_exact() -> None:
    assert exact_levels(torch.zeros(3, dtype=torch.float64)) is None
    assert exact_levels(torch.zeros(3, dtype=torch.int8)) is None
    assert exact_levels(ALL_LEVELS) is ALL_LEVELS


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_rounding_clips_and_takes_the_nearest_level(dtype: torch.dtype) -> None:
    values = [0.0, -0.0, 1.0, -3.0, 7.0, math.inf, -math.inf, math.nan, 0.25, 0.75]
    rounded = rounded_levels(torch.tensor(values, dtype=dtype))
    assert rounded.tolist() == [0, 0, 255, 0, 255, 255, 0, 0, 64, 191]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_rounding_again_changes_nothing(dtype: torch.dtype) -> None:
    assert torch.equal(rounded_levels(levels_to_values(ALL_LEVELS, dtype)), ALL_LEVELS)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 4, 5, 3), (2, 4, 5, 3)),
        ((2, 4, 5, 1), (2, 4, 5, 1)),
        ((2, 4, 5, 4), (2, 4, 5, 4)),
        ((2, 4, 5), (2, 4, 5, 1)),
        ((4, 5), (1, 4, 5, 1)),
        ((2, 4, 5, 2), (2, 4, 5, 2)),
        ((2, 4, 5, 16), (2, 4, 5, 16)),
        ((0, 4, 5, 3), None),
        ((2, 0, 5), None),
        ((5,), None),
        ((), None),
        ((1, 2, 4, 5, 3), None),
    ],
)
def test_layout_of_images_and_masks(
    shape: tuple[int, ...], layout: tuple[int, int, int, int] | None
) -> None:
    assert item_layout(shape) == layout
