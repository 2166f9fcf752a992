"""Parts tile their tensor in C order, are few, and none is much too large."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.codec.dtypes import DTYPES
from comfy_cluster.codec.parts import LARGEST_PART_COUNT, PART_SIZE, Part, Place, parts_of

examples = settings(max_examples=100, deadline=None, derandomize=True)
MIB = 1 << 20
dimensions = st.one_of(st.integers(1, 9), st.integers(1, 3000), st.integers(1, 1 << 22))


def without_memory(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One element, wherever you look."""
    return torch.zeros((), dtype=dtype).expand(shape)


def assert_tiled(parts: list[Part], tensor: torch.Tensor) -> None:
    """By what the parts say of themselves."""
    limit = max(PART_SIZE, tensor.nbytes // (LARGEST_PART_COUNT // 4))
    assert 2 <= len(parts) <= LARGEST_PART_COUNT
    assert len(parts) <= 2 * tensor.nbytes // (limit - limit // 8) + 1
    first = 0
    for index, part in enumerate(parts):
        assert part.index == index
        assert part.place == Place(tuple(tensor.shape), first, len(parts))
        assert part.values.dtype == tensor.dtype
        assert part.values.dim() == tensor.dim()
        assert 0 < part.values.nbytes <= limit
        first += part.values.numel()
    assert first == tensor.numel()


class TestSmall:
    @pytest.mark.parametrize(
        "shape",
        [(), (0,), (1,), (3, 0, 5), (0, 1 << 40), (PART_SIZE,), (1, 512, 512, 3)],
    )
    def test_small_and_empty_tensors_are_one_part_without_a_place(
        self, shape: tuple[int, ...]
    ) -> None:
        tensor = without_memory(shape, torch.uint8)
        (part,) = parts_of(tensor)
        assert part == Part(0, tensor, None)
        assert part.values is tensor

    def test_the_smallest_that_is_cut(self) -> None:
        tensor = without_memory((PART_SIZE + 2,), torch.uint8)
        assert [part.values.nbytes for part in parts_of(tensor)] == [PART_SIZE // 2 + 1] * 2


class TestCuts:
    @examples
    @given(st.lists(dimensions, min_size=1, max_size=6), st.sampled_from(list(DTYPES.values())))
    def test_any_shape_is_tiled(self, shape: list[int], dtype: torch.dtype) -> None:
        while math.prod(shape) > 1 << 50:
            shape = shape[1:]
        size = math.prod(shape) * dtype.itemsize
        if size < 2 * PART_SIZE:
            shape = [shape[0] * -(-2 * PART_SIZE // size), *shape[1:]]
        tensor = without_memory(tuple(shape), dtype)
        assert_tiled(parts_of(tensor), tensor)

    @pytest.mark.parametrize(
        "shape",
        [
            (4, 1024, 1024, 3),  # small images whole
            (1, 2160, 3840, 3),  # rows of a large one
            (9 * MIB,),
            (9 * MIB, 1),
            (1, 1, 1, 9 * MIB),  # one row larger than a part
            (3, 2 * MIB + 1, 2),
            (2, 3, 5 * MIB, 1),  # every row is cut
            (1, 16, 33, 128, 128),
        ],
    )
    def test_parts_lie_one_after_the_other_in_c_order(self, shape: tuple[int, ...]) -> None:
        tensor = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)
        parts = parts_of(tensor)
        assert_tiled(parts, tensor)
        joined = torch.cat([part.values.reshape(-1) for part in parts])
        assert torch.equal(joined, tensor.reshape(-1))

    @pytest.mark.parametrize("view", ["transposed", "flipped", "stepped", "expanded"])
    def test_parts_of_any_strides_are_views_in_the_order_of_the_view(self, view: str) -> None:
        tensor = torch.arange(6 * MIB, dtype=torch.int32).reshape(2, 1024, 1024, 3)
        seen = {
            "transposed": tensor.permute(3, 2, 0, 1),
            "flipped": tensor.permute(1, 0, 3, 2),
            "stepped": tensor[:, ::2, 1:],
            "expanded": tensor[:1, :100, None].expand(5, 100, 8, 1024, 3),
        }[view]
        assert not seen.is_contiguous() and seen.nbytes > PART_SIZE
        parts = parts_of(seen)
        assert_tiled(parts, seen)
        joined = torch.cat([part.values.reshape(-1) for part in parts])
        assert torch.equal(joined, seen.reshape(-1))
        storage = tensor.untyped_storage().data_ptr()
        assert all(part.values.untyped_storage().data_ptr() == storage for part in parts)

    def test_small_items_stay_whole_and_large_ones_are_cut_by_rows(self) -> None:
        batch = without_memory((40, 512, 512, 3))  # 3 MiB an item
        assert {part.values.shape[1:] for part in parts_of(batch)} == {(512, 512, 3)}
        large = without_memory((2, 4096, 4096, 3))
        for part in parts_of(large):
            assert part.values.shape[0] == 1 and part.values.shape[2:] == (4096, 3)

    def test_parts_of_a_huge_tensor_get_larger_instead_of_more(self) -> None:
        tensor = without_memory((1 << 20, 1024, 1024, 3))  # 12 TiB
        assert_tiled(parts_of(tensor), tensor)
