"""Bit by bit means bit by bit."""

from __future__ import annotations

import pytest
import torch

from comfy_cluster.cli.comparison import find_differences


def test_equal_batches_have_no_difference() -> None:
    batch = torch.rand(3, 4, 5, 3, generator=torch.Generator().manual_seed(1))
    assert find_differences(batch, batch.clone()) == []


def test_a_single_bit_is_found_and_told() -> None:
    expected = torch.zeros(4, 6, 5, 3)
    actual = expected.clone()
    actual.view(torch.int32)[2, 1, 4, 0] = 1
    actual[2, 3, 0, 2] = 7.0
    (found,) = find_differences(actual, expected)
    assert found.item == 2
    assert found.value_count == 2
    assert found.first == (1, 4, 0)
    assert found.actual == actual[2, 1, 4, 0].item() != 0.0
    assert found.expected == 0.0


def test_every_item_that_differs_is_found() -> None:
    expected = torch.zeros(5, 2, 2, 3)
    actual = expected.clone()
    actual[[0, 3, 4]] = 1.0
    assert [each.item for each in find_differences(actual, expected)] == [0, 3, 4]


def test_minus_zero_differs_and_the_same_nan_does_not() -> None:
    zero, nan = torch.zeros(1, 1), torch.full((1, 1), float("nan"))
    assert len(find_differences(-zero, zero)) == 1
    assert find_differences(nan, nan.clone()) == []


@pytest.mark.parametrize(
    "actual", [torch.zeros(2, 3), torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 4)]
)
def test_other_shapes_and_dtypes_are_refused(actual: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[3, 3\] float32"):
        find_differences(actual, torch.zeros(3, 3))
