"""Nodes that cut, join and reorder batches on one instance: `comfy_cluster.batches` as nodes.

A batch is what comes over a link as one value: images, masks, a latent, another tensor. A list is
what comes as several values, which ComfyUI would give to a node one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_cluster import batches
from comfy_cluster.nodes.base import ANY, ClusterNode, InputTypes, described, only

LARGEST_INT = 2**31 - 1  # of a number that a user may type in; more than any batch has items


class BatchNode(ClusterNode):
    """What they have in common."""

    CATEGORY = "Cluster/Batch"
    RETURN_TYPES = (ANY,)


class ClusterGetInstanceWorkItemFromBatch(BatchNode):
    """Picks what this instance works on, in a workflow that runs on every instance."""

    TITLE = "Cluster Get Instance Work Item From Batch"
    DESCRIPTION = (
        "Gives instance i the item batch[i + index_offset]. Where there are more items than "
        "instances, each gets its slice of the even split. On an instance without an item the "
        "nodes behind this one are skipped."
    )
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    RETURN_NAMES = ("item",)
    OUTPUT_TOOLTIPS = ("This instance's part: a batch, or elements of the list.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "batch": described(ANY, "Images, masks, a latent, another tensor, or a list."),
            },
            "optional": {
                "index_offset": described(
                    "INT",
                    "Skip so many items first.",
                    default=0,
                    min=0,
                    max=LARGEST_INT,
                ),
            },
        }

    async def execute(self, batch: list[Any], index_offset: Sequence[int] = (0,)) -> Any:
        items = batches.items_for_instance(
            batch,
            self.work.instance_index,
            instance_count=self.work.instance_count,
            index_offset=index_offset[0],
        )
        return (items,) if items else self.work.host.stop_blocked()


class ClusterSplitBatchToList(BatchNode):
    """Makes a list of small batches, which the nodes behind it work on one by one."""

    TITLE = "Cluster Split Batch To List"
    DESCRIPTION = (
        "Cuts a batch into a list of batches. The nodes behind it run once for each of them, "
        "which needs less memory than the whole batch at once."
    )
    OUTPUT_IS_LIST = (True,)
    RETURN_NAMES = ("list",)
    OUTPUT_TOOLTIPS = ("Batches of that many items; the last may have fewer.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "batch": described(ANY, "Images, masks, a latent or another tensor."),
                "items_per_element": described(
                    "INT",
                    "Items in each batch of the list.",
                    default=1,
                    min=1,
                    max=LARGEST_INT,
                ),
            }
        }

    async def execute(self, batch: Any, items_per_element: int = 1) -> Any:
        elements = batches.split_to_list(
            batches.as_batch([batch]), items_per_element=items_per_element
        )
        return (elements,) if elements else self.work.host.stop_blocked()


class ClusterFlattenBatchedImageList(BatchNode):
    """Makes a list of single images out of a list of batches."""

    TITLE = "Cluster Flatten Batched Image List"
    DESCRIPTION = (
        "Turns a list of batches into a list in which each element is one image. The batches may "
        "differ in size and in number of images."
    )
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    RETURN_NAMES = ("flat_list",)
    OUTPUT_TOOLTIPS = ("Batches of one image each, in order.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        tooltip = "A list of batches: images, masks, latents or other tensors."
        return {"required": {"batched_list": described(ANY, tooltip)}}

    async def execute(self, batched_list: list[Any]) -> Any:
        elements = batches.flatten_list([batches.as_batch([each]) for each in batched_list])
        return (elements,) if elements else self.work.host.stop_blocked()


class ClusterInsertAtIndex(BatchNode):
    """Puts items into a batch."""

    TITLE = "Cluster Insert At Index"
    DESCRIPTION = (
        "Puts an item, or all items of a batch, into a batch before the one at index. An index "
        "past the end appends. Both must have the same width, height and channels."
    )
    INPUT_IS_LIST = True
    RETURN_NAMES = ("list",)
    OUTPUT_TOOLTIPS = ("The longer batch.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "list": described(ANY, "The batch; a list of batches is joined to one first."),
                "item": described(ANY, "What to put in: of the same kind and size."),
                "index": described(
                    "INT",
                    "Where: 0 is before the first, -1 before the last item.",
                    default=0,
                    min=-LARGEST_INT,
                    max=LARGEST_INT,
                ),
            }
        }

    async def execute(self, list: list[Any], item: list[Any], index: list[int]) -> tuple[Any]:
        whole, inserted = batches.as_batch(list), batches.as_batch(item)
        return (batches.insert_at_index(whole, inserted, only(index)),)


class ClusterStridedReorder(BatchNode):
    """Puts the items of a batch into another order."""

    TITLE = "Cluster Strided Reorder"
    DESCRIPTION = (
        "Reorders a batch to the items 0, s, 2s, ..., then 1, s+1, ... and so on, where s is the "
        "stride. Undoes the interleaving of s sequences."
    )
    INPUT_IS_LIST = True
    RETURN_NAMES = ("reordered_list",)
    OUTPUT_TOOLTIPS = ("The same items in the new order.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "list": described(ANY, "The batch; a list of batches is joined to one first."),
                "stride": described(
                    "INT",
                    "How many sequences are interleaved; 1 changes nothing.",
                    default=1,
                    min=1,
                    max=LARGEST_INT,
                ),
            }
        }

    async def execute(self, list: list[Any], stride: list[int]) -> tuple[Any]:
        return (batches.strided_reorder(batches.as_batch(list), only(stride)),)
