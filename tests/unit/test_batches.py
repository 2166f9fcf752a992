"""Batches and latents: every item keeps its place, and what does not fit together is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster import batches
from comfy_cluster.errors import WorkflowError

examples = settings(max_examples=60, deadline=None, derandomize=True)


def numbered(item_count: int, *trailing: int) -> torch.Tensor:
    """A batch whose items hold their own position."""
    shape = (item_count, *[1] * len(trailing))
    return torch.arange(item_count, dtype=torch.float32).reshape(shape).expand(-1, *trailing)


def positions(batch: torch.Tensor) -> list[int]:
    return [int(item.reshape(-1)[0]) for item in batch]


class TestEvenSplit:
    @pytest.mark.parametrize(
        ("item_count", "instance_count", "sizes"),
        [
            (10, 4, [3, 3, 2, 2]),
            (8, 4, [2, 2, 2, 2]),
            (2, 4, [1, 1, 0, 0]),
            (0, 3, [0, 0, 0]),
            (5, 1, [5]),
        ],
    )
    def test_first_instances_get_one_item_more(
        self, item_count: int, instance_count: int, sizes: list[int]
    ) -> None:
        assert batches.split_sizes(item_count, instance_count) == sizes

    @examples
    @given(st.integers(0, 1000), st.integers(1, 120))
    def test_sizes_are_complete_even_and_falling(self, item_count: int, instances: int) -> None:
        sizes = batches.split_sizes(item_count, instances)
        with_items = [index for index, size in enumerate(sizes) if size]
        assert batches.instances_with_items(item_count, instances) == with_items
        assert sum(sizes) == item_count and len(sizes) == instances
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)

    @pytest.mark.parametrize(("items", "instances"), [(-1, 2), (3, 0)])
    def test_senseless_counts_are_refused(self, items: int, instances: int) -> None:
        with pytest.raises(ValueError, match="cannot split"):
            batches.split_sizes(items, instances)

    @examples
    @given(st.integers(0, 40), st.integers(1, 9))
    def test_concat_undoes_split(self, item_count: int, instance_count: int) -> None:
        batch = numbered(item_count, 2, 3)
        parts = batches.split(batch, instance_count)
        assert [len(part) for part in parts] == batches.split_sizes(item_count, instance_count)
        assert torch.equal(batches.concat(parts), batch)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
    def test_concat_into_memory_that_is_given(self, dtype: torch.dtype) -> None:
        batch = (numbered(7, 2, 3) % 2).to(dtype)
        given: list[bytearray] = []

        def allocate(size: int) -> memoryview:
            given.append(bytearray(size))
            return memoryview(given[-1])

        joined = batches.concat([batch[:3], batch[3:3], batch[3:]], allocate)
        assert torch.equal(joined, batch)
        assert joined.dtype == dtype
        assert len(given) == 1
        joined.zero_()
        assert given == [bytearray(batch.numel() * batch.element_size())]
        assert batches.concat([batch, batch[:0]], allocate) is batch
        assert batches.concat([batch[:, :0], batch[:, :0]], allocate).shape == (14, 0, 3)
        assert len(given) == 1

    def test_slices_are_views(self) -> None:
        batch = torch.zeros(5, 2)
        batches.split(batch, 2)[1][0, 0] = 7
        assert batch[3, 0] == 7

    def test_tensor_without_dimensions_is_no_batch(self) -> None:
        with pytest.raises(WorkflowError, match="without dimensions"):
            batches.split(torch.tensor(1.0), 2)


class TestConcat:
    def test_error_names_the_part_and_both_shapes(self) -> None:
        parts = [torch.zeros(1, 4, 4, 3), torch.zeros(2, 4, 4, 3), torch.zeros(1, 4, 8, 3)]
        with pytest.raises(WorkflowError) as error:
            batches.concat(parts)
        assert "part 2 is [1, 4, 8, 3] float32" in str(error.value)
        assert "part 0 is [1, 4, 4, 3] float32" in str(error.value)

    def test_dtypes_are_not_converted_silently(self) -> None:
        with pytest.raises(WorkflowError, match=r"part 1 is \[1, 2\] float64"):
            batches.concat([torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.float64)])

    def test_empty_part_does_not_disturb(self) -> None:
        batch = numbered(2, 4)
        assert torch.equal(batches.concat([torch.zeros(0), batch, torch.zeros(0, 9)]), batch)

    def test_only_empty_parts_give_an_empty_batch(self) -> None:
        assert batches.concat([torch.zeros(0, 3), torch.zeros(0, 3)]).shape == (0, 3)

    def test_single_part_is_not_copied(self) -> None:
        part = torch.zeros(2, 2)
        assert batches.concat([part]) is part

    def test_nothing_to_join(self) -> None:
        with pytest.raises(WorkflowError, match="there is no part"):
            batches.concat([])


class TestLists:
    def test_mask_without_batch_dimension_becomes_a_batch(self) -> None:
        assert batches.mask_batch(torch.zeros(4, 5)).shape == (1, 4, 5)
        assert batches.mask_batch(torch.zeros(3, 4, 5)).shape == (3, 4, 5)

    def test_split_to_list_puts_the_rest_last(self) -> None:
        elements = batches.split_to_list(numbered(5, 2), items_per_element=2)
        assert [positions(element) for element in elements] == [[0, 1], [2, 3], [4]]

    def test_flatten_list_makes_batches_of_one(self) -> None:
        flat = batches.flatten_list([numbered(2, 3), numbered(0, 3), numbered(1, 3)])
        assert [positions(item) for item in flat] == [[0], [1], [0]]
        assert {item.shape for item in flat} == {(1, 3)}

    def test_items_per_element_must_be_positive(self) -> None:
        with pytest.raises(WorkflowError, match="items_per_element is 0"):
            batches.split_to_list(numbered(3, 1), items_per_element=0)

    @examples
    @given(st.integers(0, 6), st.integers(-9, 9), st.booleans())
    def test_insert_places_as_a_list_does(self, count: int, index: int, is_bare: bool) -> None:
        expected = list(range(count))
        expected.insert(index, 99)
        item = torch.full((3,) if is_bare else (1, 3), 99.0)
        assert positions(batches.insert_at_index(numbered(count, 3), item, index)) == expected

    def test_inserted_item_must_agree_in_shape(self) -> None:
        with pytest.raises(WorkflowError, match=r"item is \[4\] float32, the batch is \[2, 3\]"):
            batches.insert_at_index(numbered(2, 3), torch.zeros(4), 0)

    def test_strided_reorder_undoes_interleaving(self) -> None:
        assert positions(batches.strided_reorder(numbered(7, 2), 3)) == [0, 3, 6, 1, 4, 2, 5]

    @examples
    @given(st.integers(0, 20), st.integers(1, 25))
    def test_strided_reorder_keeps_every_item(self, count: int, stride: int) -> None:
        reordered = positions(batches.strided_reorder(numbered(count, 1), stride))
        assert sorted(reordered) == list(range(count))

    def test_stride_must_be_positive(self) -> None:
        with pytest.raises(WorkflowError, match="stride is 0"):
            batches.strided_reorder(numbered(3, 1), 0)


class TestItemForInstance:
    @pytest.mark.parametrize(
        ("item_count", "index", "offset", "expected"),
        [
            (4, 2, 0, [2]),
            (8, 1, 4, [5]),
            (10, 0, 0, [0, 1, 2]),
            (10, 3, 0, [8, 9]),
            (10, 1, 2, [4, 5]),
        ],
    )
    def test_item_or_slice(
        self, item_count: int, index: int, offset: int, expected: list[int]
    ) -> None:
        item = batches.item_for_instance(
            numbered(item_count, 2), index, instance_count=4, index_offset=offset
        )
        assert item is not None and positions(item) == expected

    @pytest.mark.parametrize(("item_count", "index", "offset"), [(2, 2, 0), (4, 0, 4), (4, 0, 9)])
    def test_instance_without_item_gets_none(
        self, item_count: int, index: int, offset: int
    ) -> None:
        batch = numbered(item_count, 2)
        found = batches.item_for_instance(batch, index, instance_count=4, index_offset=offset)
        assert found is None

    def test_bad_arguments(self) -> None:
        with pytest.raises(WorkflowError, match="index_offset is -1"):
            batches.item_for_instance(numbered(2, 1), 0, instance_count=1, index_offset=-1)
        with pytest.raises(ValueError, match="instance 4 of 4"):
            batches.item_for_instance(numbered(2, 1), 4, instance_count=4)


def latent_of(item_count: int, **extra: Any) -> dict[str, Any]:
    return {"samples": numbered(item_count, 4, 8, 8), **extra}


def assert_same_latent(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[key], value), key
        else:
            assert found[key] == value, key


def comfy_noise(seed: int, shape: torch.Size, indices: list[int] | None) -> torch.Tensor:
    """The noise as ComfyUI draws it (comfy/sample.py, prepare_noise)."""
    generator = torch.Generator().manual_seed(seed)
    if indices is None:
        return torch.randn(shape, generator=generator)
    rows = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(max(indices) + 1)]
    return torch.cat([rows[index] for index in indices])


class TestLatents:
    @examples
    @given(st.integers(1, 12), st.integers(1, 5))
    def test_concat_undoes_split(self, item_count: int, instance_count: int) -> None:
        latent = latent_of(
            item_count,
            noise_mask=numbered(item_count, 1, 64, 64),
            per_item=numbered(item_count, 5),
            shared=numbered(1, 7),
            type="audio",
        )
        parts = batches.split_latent(latent, instance_count)
        assert_same_latent(batches.concat_latents(parts), latent)

    def test_input_is_not_changed(self) -> None:
        latent = latent_of(3, extra=[1, 2])
        before = dict(latent)
        batches.split_latent(latent, 2)
        assert_same_latent(latent, before)

    def test_slices_draw_the_noise_of_the_undivided_batch(self) -> None:
        latent = latent_of(5)
        parts = batches.split_latent(latent, 2)
        drawn = [comfy_noise(7, part["samples"].shape, part["batch_index"]) for part in parts]
        assert torch.equal(torch.cat(drawn), comfy_noise(7, latent["samples"].shape, None))

    def test_existing_batch_index_is_cut_and_joined(self) -> None:
        latent = latent_of(4, batch_index=[9, 3, 3, 0])
        parts = batches.split_latent(latent, 3)
        assert [part["batch_index"] for part in parts] == [[9, 3], [3], [0]]
        assert batches.concat_latents(parts)["batch_index"] == [9, 3, 3, 0]

    def test_batch_index_of_another_length_is_refused(self) -> None:
        with pytest.raises(WorkflowError, match="4 items, but its batch_index has 2"):
            batches.split_latent(latent_of(4, batch_index=[0, 1]), 2)

    def test_part_without_batch_index_counts_on_from_its_place(self) -> None:
        joined = batches.concat_latents([latent_of(2, batch_index=[5, 6]), latent_of(2)])
        assert joined["batch_index"] == [5, 6, 2, 3]

    def test_noise_mask_of_one_item_stays_whole(self) -> None:
        mask = numbered(1, 1, 64, 64)
        parts = batches.split_latent(latent_of(4, noise_mask=mask), 2)
        assert all(torch.equal(part["noise_mask"], mask) for part in parts)
        assert torch.equal(batches.concat_latents(parts)["noise_mask"], mask)

    def test_shorter_noise_mask_is_repeated_over_the_batch(self) -> None:
        latent = latent_of(5, noise_mask=numbered(2, 1, 64, 64))
        parts = batches.split_latent(latent, 2)
        assert [positions(part["noise_mask"]) for part in parts] == [[0, 1, 0], [1, 0]]

    def test_part_without_noise_mask_gets_ones(self) -> None:
        masked = latent_of(1, noise_mask=torch.zeros(1, 1, 4, 4))
        joined = batches.concat_latents([masked, latent_of(2)])
        assert positions(joined["noise_mask"]) == [0, 1, 1]
        assert joined["noise_mask"].shape == (3, 1, 4, 4)

    def test_different_single_row_masks_are_spread_over_their_items(self) -> None:
        masks = [torch.full((1, 1, 4, 4), value) for value in (0.0, 0.5)]
        parts = [latent_of(2, noise_mask=mask) for mask in masks]
        joined = batches.concat_latents(parts)["noise_mask"]
        assert joined[:, 0, 0, 0].tolist() == [0.0, 0.0, 0.5, 0.5]

    def test_idle_instance_gets_a_latent_without_items(self) -> None:
        latent = latent_of(2)
        parts = batches.split_latent(latent, 4)
        assert [len(part["samples"]) for part in parts] == [1, 1, 0, 0]
        assert parts[3]["batch_index"] == []
        assert_same_latent(batches.concat_latents(parts), latent)

    def test_latent_without_items_stays_one(self) -> None:
        parts = batches.split_latent(latent_of(0), 2)
        assert batches.concat_latents(parts)["samples"].shape == (0, 4, 8, 8)

    def test_video_latents_are_cut_along_the_batch(self) -> None:
        parts = batches.split_latent({"samples": numbered(3, 4, 2, 8, 8)}, 2)
        assert [part["samples"].shape[0] for part in parts] == [2, 1]

    def test_samples_that_do_not_fit_are_named(self) -> None:
        with pytest.raises(WorkflowError, match=r"part 1 is \[1, 4, 9, 9\]"):
            batches.concat_latents([latent_of(1), {"samples": torch.zeros(1, 4, 9, 9)}])

    @pytest.mark.parametrize("latent", [{}, {"samples": [torch.zeros(1)]}])
    def test_latent_without_a_tensor_is_refused(self, latent: dict[str, Any]) -> None:
        with pytest.raises(WorkflowError, match="expected a latent"):
            batches.split_latent(latent, 2)


class TestAnyBatch:
    """What the functions do with latents, and with what is no batch."""

    def test_rows_in_sequence_are_a_view(self) -> None:
        batch = numbered(4, 3).clone()
        assert batches.take(batch, range(1, 3)).data_ptr() == batch[1].data_ptr()
        assert positions(batches.take(batch, [3, 0, 0])) == [3, 0, 0]
        assert positions(batches.take(batch, range(3, 0, -2))) == [3, 1]

    def test_taken_latent_items_keep_their_noise_and_mask(self) -> None:
        latent = latent_of(3, noise_mask=numbered(3, 1, 8, 8), batch_index=[7, 8, 9], type="audio")
        taken = batches.take(latent, [2, 0])
        assert positions(taken["samples"]) == positions(taken["noise_mask"]) == [2, 0]
        assert taken["batch_index"] == [9, 7] and taken["type"] == "audio"

    def test_cut_latents_may_overlap_and_be_empty(self) -> None:
        parts = batches.cut_latent(latent_of(3), [range(3), [1], []])
        assert [part["batch_index"] for part in parts] == [[0, 1, 2], [1], []]

    def test_several_values_are_joined(self) -> None:
        assert batches.as_batch([numbered(2, 3)]).shape == (2, 3)
        assert positions(batches.as_batch([numbered(2, 3), numbered(1, 3)])) == [0, 1, 0]
        assert len(batches.as_batch([latent_of(1), latent_of(2)])["samples"]) == 3

    @pytest.mark.parametrize(
        ("values", "text"),
        [
            (["text"], "expected images, masks, a latent or another tensor, got str"),
            ([[torch.zeros(1)]], "got list"),
            ([torch.tensor(1.0)], r"got \[\] float32"),
            ([{"waveform": torch.zeros(1)}], "expected a latent with a tensor as 'samples'"),
            ([torch.zeros(1), {"samples": torch.zeros(1)}], "some parts are latents"),
            ([], "there is no part"),
        ],
    )
    def test_what_is_no_batch_is_refused(self, values: list[Any], text: str) -> None:
        with pytest.raises(WorkflowError, match=text):
            batches.as_batch(values)

    def test_latents_are_split_to_lists_and_flattened(self) -> None:
        elements = batches.split_to_list(latent_of(3), items_per_element=2)
        assert [element["batch_index"] for element in elements] == [[0, 1], [2]]
        flat = batches.flatten_list(elements)
        assert [item["batch_index"] for item in flat] == [[0], [1], [2]]
        assert {item["samples"].shape for item in flat} == {(1, 4, 8, 8)}

    def test_reordered_latents_keep_their_noise(self) -> None:
        latent = batches.strided_reorder(latent_of(4), 2)
        assert positions(latent["samples"]) == latent["batch_index"] == [0, 2, 1, 3]

    def test_inserted_latents_get_noise_that_is_not_in_use(self) -> None:
        new = {"samples": torch.full((2, 4, 8, 8), 9.0)}
        latent = batches.insert_at_index(latent_of(2), new, 1)
        assert positions(latent["samples"]) == [0, 9, 9, 1]
        assert latent["batch_index"] == [0, 2, 3, 1]
        told = batches.insert_at_index(latent_of(2), {**new, "batch_index": [5, 6]}, 0)
        assert told["batch_index"] == [5, 6, 0, 1]

    def test_appended_latents_are_a_plain_batch(self) -> None:
        assert "batch_index" not in batches.insert_at_index(latent_of(2), latent_of(1), 99)

    def test_inserted_latent_must_be_one_and_agree_in_shape(self) -> None:
        with pytest.raises(WorkflowError, match=r"item is a latent of \[1, 4, 9, 9\] float32"):
            batches.insert_at_index(latent_of(2), {"samples": torch.zeros(1, 4, 9, 9)}, 0)
        other: Any = torch.zeros(1, 4, 8, 8)
        with pytest.raises(WorkflowError, match=r"the batch is a latent of \[2, 4, 8, 8\]"):
            batches.insert_at_index(latent_of(2), other, 0)


class TestItemsForInstance:
    @pytest.mark.parametrize(
        ("values", "index", "expected"),
        [
            (list("abcdef"), 0, ["a", "b"]),
            (list("abcdef"), 3, ["f"]),
            (list("abcd"), 2, ["c"]),
            ([list("abcd")], 2, ["c"]),
            (["a"], 0, ["a"]),
            (["a"], 1, []),
            ([], 0, []),
        ],
    )
    def test_lists_are_shared_out_by_element(
        self, values: list[Any], index: int, expected: list[str]
    ) -> None:
        assert batches.items_for_instance(values, index, instance_count=4) == expected

    def test_one_batch_is_cut(self) -> None:
        (item,) = batches.items_for_instance([numbered(6, 2)], 1, instance_count=4)
        assert positions(item) == [2, 3]
        (latent,) = batches.items_for_instance([latent_of(6)], 1, instance_count=2, index_offset=2)
        assert latent["batch_index"] == [4, 5]
        assert batches.items_for_instance([numbered(1, 2)], 1, instance_count=4) == []

    def test_several_batches_are_a_list(self) -> None:
        values = [numbered(3, 2), numbered(5, 9)]
        assert batches.items_for_instance(values, 1, instance_count=2) == values[1:]

    def test_a_latent_of_several_tensors_is_refused(self) -> None:
        with pytest.raises(WorkflowError, match="cannot be split"):
            batches.items_for_instance([{"samples": [1]}], 0, instance_count=2)
