"""The nodes that cut, join and reorder batches; what they wrap is tested in test_batches.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from comfy_cluster.errors import WorkflowError
from comfy_cluster.nodes.batch import (
    ClusterFlattenBatchedImageList,
    ClusterGetInstanceWorkItemFromBatch,
    ClusterInsertAtIndex,
    ClusterSplitBatchToList,
    ClusterStridedReorder,
)
from tests.unit.nodes.fakes import BLOCKED, FakeWork, execute, make


def images(*values: int) -> torch.Tensor:
    """A batch of tiny images; each is filled with its value."""
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 2, 2, 3)


def values_of(batch: torch.Tensor) -> list[int]:
    return [int(image[0, 0, 0]) for image in batch]


def latent(*values: int) -> dict[str, Any]:
    samples = torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1)
    return {"samples": samples.expand(-1, 4, 2, 2)}


class TestGetInstanceWorkItem:
    def items(self, index: int, batch: list[Any], **inputs: Any) -> Any:
        work = FakeWork(instance_index=index, instance_count=4)
        return execute(make(ClusterGetInstanceWorkItemFromBatch, work), batch=batch, **inputs)

    def test_each_instance_gets_its_item(self) -> None:
        ((item,),) = self.items(2, [images(10, 11, 12, 13)])
        assert values_of(item) == [12]
        ((item,),) = self.items(1, [images(10, 11, 12)], index_offset=[1])
        assert values_of(item) == [12]

    def test_a_long_batch_is_split_evenly(self) -> None:
        ((item,),) = self.items(1, [images(*range(10))])
        assert values_of(item) == [3, 4, 5]

    def test_a_list_is_shared_out_by_element(self) -> None:
        assert self.items(0, list("abcdef")) == (["a", "b"],)
        assert self.items(3, [list("abcdef")]) == (["f"],)

    def test_latents_keep_their_noise(self) -> None:
        ((item,),) = self.items(3, [latent(5, 6, 7, 8)])
        assert item["batch_index"] == [3]

    @pytest.mark.parametrize("batch", [[images(1, 2)], list("ab"), []])
    def test_an_instance_without_an_item_stops(self, batch: list[Any]) -> None:
        assert self.items(3, batch) == BLOCKED

    def test_one_instance_gets_all(self) -> None:
        node = make(ClusterGetInstanceWorkItemFromBatch)
        ((item,),) = execute(node, batch=[images(1, 2, 3)])
        assert values_of(item) == [1, 2, 3]


class TestLists:
    def test_a_batch_becomes_a_list(self) -> None:
        node = make(ClusterSplitBatchToList)
        (elements,) = execute(node, batch=images(1, 2, 3), items_per_element=2)
        assert [values_of(element) for element in elements] == [[1, 2], [3]]
        (elements,) = execute(node, batch=images(1, 2))
        assert [values_of(element) for element in elements] == [[1], [2]]

    def test_batches_become_a_list_of_single_images(self) -> None:
        node = make(ClusterFlattenBatchedImageList)
        (elements,) = execute(node, batched_list=[images(1, 2), images(3)])
        assert [values_of(element) for element in elements] == [[1], [2], [3]]

    def test_of_nothing_comes_no_list(self) -> None:
        """A list without elements would end in an error of ComfyUI's own."""
        assert execute(make(ClusterSplitBatchToList), batch=images()) == BLOCKED
        assert execute(make(ClusterFlattenBatchedImageList), batched_list=[images()]) == BLOCKED

    @pytest.mark.parametrize(
        ("node_class", "inputs"),
        [
            (ClusterSplitBatchToList, {"batch": "text"}),
            (ClusterFlattenBatchedImageList, {"batched_list": [images(1), "text"]}),
            (ClusterStridedReorder, {"list": ["text"], "stride": [2]}),
            (ClusterInsertAtIndex, {"list": [images(1)], "item": ["text"], "index": [0]}),
        ],
    )
    def test_what_is_no_batch_is_refused(self, node_class: Any, inputs: dict[str, Any]) -> None:
        with pytest.raises(WorkflowError, match=r"expected images, .* tensor, got str"):
            execute(make(node_class), **inputs)


class TestInsertAtIndex:
    def inserted(self, batch: list[Any], item: list[Any], index: int) -> Any:
        (longer,) = execute(make(ClusterInsertAtIndex), list=batch, item=item, index=[index])
        return longer

    def test_before_the_index_and_past_the_end(self) -> None:
        assert values_of(self.inserted([images(1, 2)], [images(9)], 1)) == [1, 9, 2]
        assert values_of(self.inserted([images(1, 2)], [images(9)], 50)) == [1, 2, 9]

    def test_lists_are_joined_first(self) -> None:
        longer = self.inserted([images(1), images(2, 3)], [images(8), images(9)], -1)
        assert values_of(longer) == [1, 2, 8, 9, 3]

    def test_masks_without_a_batch_dimension(self) -> None:
        assert self.inserted([torch.zeros(2, 4, 4)], [torch.ones(4, 4)], 0).shape == (3, 4, 4)

    def test_latents(self) -> None:
        assert self.inserted([latent(1, 2)], [latent(9)], 0)["batch_index"] == [2, 0, 1]

    def test_sizes_must_agree(self) -> None:
        with pytest.raises(WorkflowError, match=r"item is \[1, 4, 4, 3\] float32, the batch is"):
            self.inserted([images(1)], [torch.zeros(1, 4, 4, 3)], 0)


class TestStridedReorder:
    def reordered(self, batch: list[Any], stride: int) -> Any:
        (batch_after,) = execute(make(ClusterStridedReorder), list=batch, stride=[stride])
        return batch_after

    def test_undoes_interleaving(self) -> None:
        assert values_of(self.reordered([images(0, 1, 2, 3, 4)], 2)) == [0, 2, 4, 1, 3]

    def test_a_list_is_one_batch_however_it_is_cut(self) -> None:
        """ClusterGather makes a list with a batch for each instance, one or many."""
        assert values_of(self.reordered([images(0, 1), images(2, 3)], 2)) == [0, 2, 1, 3]

    def test_a_senseless_stride_is_refused(self) -> None:
        with pytest.raises(WorkflowError, match="stride is 0"):
            self.reordered([images(1)], 0)
