"""Cut, join and reorder batches: pure functions on tensors and latents. No network, no ComfyUI.

A batch is a tensor whose first dimension counts the items (IMAGE [B,H,W,C], MASK [B,H,W]). A latent
is ComfyUI's dict: `samples` [B,C,H,W] or [B,C,T,H,W], optional `noise_mask` [B or 1,1,H,W] and
`batch_index` (list of B positions, by which KSampler picks each item's noise), and keys of other
node packs. Cutting returns views and never changes its input. Called by `cluster/` and `nodes/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from comfy_cluster.errors import WorkflowError

Latent = Mapping[str, Any]


def split_sizes(item_count: int, instance_count: int) -> list[int]:
    """The even split: each instance gets as many, the first `item_count % instance_count` one more.

    10 over 4 gives [3, 3, 2, 2]; 2 over 4 gives [1, 1, 0, 0].
    """
    if item_count < 0 or instance_count < 1:
        raise ValueError(f"cannot split {item_count} items over {instance_count} instances")
    share, extra = divmod(item_count, instance_count)
    return [share + (index < extra) for index in range(instance_count)]


def split_ranges(item_count: int, instance_count: int) -> list[range]:
    """The even split as the positions in the batch that each instance gets."""
    sizes = split_sizes(item_count, instance_count)
    return [range(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def instances_with_items(item_count: int, instance_count: int) -> list[int]:
    """Who gets at least one item in the even split: the instances that a fan-in has to wait for."""
    return list(range(min(item_count, instance_count)))


def split(batch: torch.Tensor, instance_count: int) -> list[torch.Tensor]:
    """The even split of a batch along its first dimension, as views; some may have no items."""
    item_count = count_items(batch)
    return [batch[part.start : part.stop] for part in split_ranges(item_count, instance_count)]


def count_items(batch: torch.Tensor) -> int:
    """Items of a batch; `WorkflowError` for a tensor without dimensions."""
    if batch.ndim == 0:
        raise WorkflowError("expected a batch, got a tensor without dimensions")
    return batch.shape[0]


def concat(
    parts: Sequence[torch.Tensor], allocate: Callable[[int], memoryview] | None = None
) -> torch.Tensor:
    """Join parts in order along the first dimension, on the device of the first part with items.

    A single part with items is returned as it is. `allocate(size)` gives the memory of a join in
    main memory, writable and of `size` bytes; torch's own by default. Raises `WorkflowError` that
    names the parts whose shapes or dtypes do not fit together: nothing is resized or converted
    silently.
    """
    if not parts:
        raise WorkflowError("nothing to join: there is no part")
    for part in parts:
        count_items(part)
    numbered = [(index, part) for index, part in enumerate(parts) if len(part)]
    if not numbered:
        return parts[0]
    first_index, first = numbered[0]
    for index, part in numbered:
        if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
            raise WorkflowError(
                f"cannot join: part {index} is {_describe(part)}, but part {first_index} is "
                f"{_describe(first)}; all parts need the same size and dtype"
            )
    if len(numbered) == 1:
        return first
    filled = [part.to(first.device) for _, part in numbered]
    if allocate is None or first.device.type != "cpu" or not first[0].numel():
        return torch.cat(filled)
    count = sum(len(part) for part in filled)
    memory = allocate(count * first[0].numel() * first.element_size())
    joined = torch.frombuffer(memory, dtype=first.dtype).view(count, *first.shape[1:])
    return torch.cat(filled, out=joined)


def _describe(batch: torch.Tensor) -> str:
    return f"{list(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"


def mask_batch(mask: torch.Tensor) -> torch.Tensor:
    """A mask as a batch [B,H,W]; ComfyUI also passes single masks [H,W]."""
    return mask.unsqueeze(0) if mask.ndim == 2 else mask


def split_to_list(batch: torch.Tensor, *, items_per_element: int = 1) -> list[torch.Tensor]:
    """A batch as a list of batches of `items_per_element` items each; the last may have fewer."""
    if items_per_element < 1:
        raise WorkflowError(f"items_per_element is {items_per_element}, it must be at least 1")
    return [
        batch[start : start + items_per_element]
        for start in range(0, count_items(batch), items_per_element)
    ]


def flatten_list(batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A list of batches as a list in which each element is a batch of one item."""
    return [item for batch in batches for item in split_to_list(batch)]


def insert_at_index(batch: torch.Tensor, item: torch.Tensor, index: int) -> torch.Tensor:
    """The batch with `item` before position `index`; an index past the end appends.

    `item` is one item without the first dimension, or a batch of any size. A negative index counts
    from the end, as in `list.insert`. Raises `WorkflowError` when the shapes do not agree.
    """
    inserted = item.unsqueeze(0) if item.ndim == batch.ndim - 1 else item
    if inserted.shape[1:] != batch.shape[1:] or inserted.ndim != batch.ndim:
        raise WorkflowError(
            f"cannot insert: the item is {_describe(item)}, the batch is {_describe(batch)}"
        )
    return concat([batch[:index], inserted, batch[index:]])


def strided_reorder(batch: torch.Tensor, stride: int) -> torch.Tensor:
    """Items in the order 0, s, 2s, ..., 1, s+1, ...: undoes the interleaving of s sequences."""
    if stride < 1:
        raise WorkflowError(f"stride is {stride}, it must be at least 1")
    item_count = count_items(batch)
    order = [
        position
        for start in range(min(stride, item_count))
        for position in range(start, item_count, stride)
    ]
    return batch[torch.tensor(order, dtype=torch.int64, device=batch.device)]


def item_for_instance(
    batch: torch.Tensor, instance_index: int, *, instance_count: int, index_offset: int = 0
) -> torch.Tensor | None:
    """The part of a batch that one instance works on, as a view; None if there is nothing for it.

    The first `index_offset` items are skipped. Of the rest, instance i gets item i, as a batch of
    one; when there are more items than instances, it gets its slice of their even split.
    """
    positions = positions_for_instance(
        count_items(batch), instance_index, instance_count=instance_count, index_offset=index_offset
    )
    return batch[positions.start : positions.stop] if positions else None


def positions_for_instance(
    item_count: int, instance_index: int, *, instance_count: int, index_offset: int = 0
) -> range:
    """`item_for_instance` as positions, for batches that are lists; empty if there is nothing."""
    if index_offset < 0:
        raise WorkflowError(f"index_offset is {index_offset}, it must be at least 0")
    if not 0 <= instance_index < instance_count:
        raise ValueError(f"instance {instance_index} of {instance_count} does not exist")
    remaining = max(item_count - index_offset, 0)
    share = split_ranges(remaining, instance_count)[instance_index]
    return range(share.start + index_offset, share.stop + index_offset)


def latent_samples(latent: Latent) -> torch.Tensor:
    """The `samples` of a latent; `WorkflowError` when that is not one plain tensor."""
    samples = latent.get("samples")
    if not isinstance(samples, torch.Tensor) or samples.is_nested:
        raise WorkflowError(
            f"expected a latent with a tensor as 'samples', got {type(samples).__name__}; "
            "latents of several tensors (video with audio) cannot be split"
        )
    count_items(samples)
    return samples


def split_latent(latent: Latent, instance_count: int) -> list[dict[str, Any]]:
    """The even split of a latent: one latent for each instance; some may have no items.

    Each gets the `batch_index` of its items (their positions, where the latent has none), so that
    KSampler draws the noise which the same item would have got in the undivided batch. A
    `noise_mask` of one item stays whole; another one is repeated to the batch's size and cut.
    Tensors under unknown keys are cut when they have one row an item; all else goes to everyone.
    """
    item_count = count_items(latent_samples(latent))
    return cut_latent(latent, split_ranges(item_count, instance_count))


def cut_latent(latent: Latent, positions: Sequence[range]) -> list[dict[str, Any]]:
    """A latent for each of `positions`, which are without gaps; see `split_latent`."""
    item_count = count_items(latent_samples(latent))
    batch_index = _batch_index(latent, item_count)
    whole = dict(latent)
    if (mask := _full_noise_mask(latent, item_count)) is not None:
        whole["noise_mask"] = mask
    cut_keys = [key for key, value in whole.items() if _has_rows(value, item_count)]
    slices = []
    for part in positions:
        latent_slice = dict(whole)
        for key in ("samples", *cut_keys):
            latent_slice[key] = whole[key][part.start : part.stop]
        latent_slice["batch_index"] = batch_index[part.start : part.stop]
        slices.append(latent_slice)
    return slices


def _batch_index(latent: Latent, item_count: int, *, start: int = 0) -> list[int]:
    batch_index = latent.get("batch_index")
    if batch_index is None:
        return list(range(start, start + item_count))
    if len(batch_index) != item_count:
        raise WorkflowError(
            f"the latent has {item_count} items, but its batch_index has {len(batch_index)}"
        )
    return list(batch_index)


def _full_noise_mask(latent: Latent, item_count: int) -> torch.Tensor | None:
    """The noise mask with one row an item, repeated as ComfyUI does it; a single row stays."""
    mask: torch.Tensor | None = latent.get("noise_mask")
    if mask is None or mask.ndim < 3 or len(mask) <= 1:
        return mask
    repeats = -(-item_count // len(mask))
    return mask.repeat(repeats, *[1] * (mask.ndim - 1))[:item_count]


def _has_rows(value: object, count: int) -> bool:
    """Whether a value has one row for each of `count` items; one row alone may belong to all."""
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count > 1


def concat_latents(parts: Sequence[Latent]) -> dict[str, Any]:
    """Join latents in order: the inverse of `split_latent`.

    Parts without items are left out. `batch_index` is joined too (parts without one count on from
    their place in the join), and left away when it only says 0, 1, 2, ...: that is what a latent
    without it means. A part without `noise_mask`, among others that have one, gets ones. Other
    tensors with one row an item are joined; of all else the first part's value is taken.
    Raises `WorkflowError` when the parts do not fit together.
    """
    all_samples = [latent_samples(part) for part in parts]
    filled = [part for part, samples in zip(parts, all_samples, strict=True) if len(samples)]
    if not filled:
        filled = list(parts[:1])
    joined: dict[str, Any] = {}
    for part in reversed(filled):
        joined.update(part)
    sizes = [len(part["samples"]) for part in filled]
    for key in joined.keys() - {"samples", "noise_mask", "batch_index"}:
        joined[key] = _join_values([part.get(key) for part in filled], sizes)
    joined["samples"] = concat(all_samples)
    if "noise_mask" in joined:
        joined["noise_mask"] = _join_noise_masks(filled, sizes)
    _join_batch_index(joined, filled, sizes)
    return joined


def _join_values(values: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Rows joined if each part has its own rows; else the first value that is there."""
    pairs = list(zip(values, sizes, strict=True))
    has_rows = all(
        isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == size
        for value, size in pairs
    )
    if has_rows and not _is_shared(values):
        return concat(values)
    return next((value for value in values if value is not None), None)


def _is_shared(values: Sequence[torch.Tensor]) -> bool:
    """Whether all parts have the same single row: then it was never cut."""
    first = values[0]
    return all(len(value) == 1 and torch.equal(value.to(first.device), first) for value in values)


def _join_noise_masks(parts: Sequence[Latent], sizes: Sequence[int]) -> torch.Tensor:
    masks = [_full_noise_mask(part, size) for part, size in zip(parts, sizes, strict=True)]
    present = [mask for mask in masks if mask is not None]
    model = present[0]
    if len(present) == len(masks) and (model.ndim < 3 or _is_shared(present)):
        return model
    rows = []
    for mask, size in zip(masks, sizes, strict=True):
        filled = torch.ones_like(model[:1]) if mask is None else mask
        rows.append(filled.expand(size, *filled.shape[1:]) if len(filled) == 1 else filled)
    return concat(rows)


def _join_batch_index(
    joined: dict[str, Any], parts: Sequence[Latent], sizes: Sequence[int]
) -> None:
    joined.pop("batch_index", None)
    positions: list[int] = []
    for part, size in zip(parts, sizes, strict=True):
        positions += _batch_index(part, size, start=len(positions))
    if positions != list(range(len(positions))):
        joined["batch_index"] = positions
