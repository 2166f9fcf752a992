"""Cut, join and reorder batches: pure functions on tensors and latents. No network, no ComfyUI.

A batch is a tensor whose first dimension counts the items (IMAGE [B,H,W,C], MASK [B,H,W]). A latent
is ComfyUI's dict: `samples` [B,C,H,W] or [B,C,T,H,W], optional `noise_mask` [B or 1,1,H,W] and
`batch_index` (list of B positions, by which KSampler picks each item's noise), and keys of other
node packs. Cutting returns views and never changes its input. Called by `cluster/` and `nodes/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch

from comfy_cluster.errors import WorkflowError

Latent = Mapping[str, Any]

# In a latent that was cut: the keys that have one row an item, and not one row for all. A slice of
# one item would not tell.
CUT_KEYS = "cluster_cut_keys"
Batch = TypeVar("Batch", torch.Tensor, Latent)


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


def count_items(batch: torch.Tensor | Latent) -> int:
    """Items of a batch; `WorkflowError` for a tensor without dimensions."""
    samples = batch if isinstance(batch, torch.Tensor) else latent_samples(batch)
    if samples.ndim == 0:
        raise WorkflowError("expected a batch, got a tensor without dimensions")
    return samples.shape[0]


def is_batch(value: object) -> bool:
    """Whether a value is one that can be cut: a tensor, or a latent that is one plain tensor."""
    held = value.get("samples") if isinstance(value, Mapping) else value
    return isinstance(held, torch.Tensor) and not held.is_nested and held.ndim > 0


def as_batch(values: Sequence[Any]) -> Any:
    """The batch that an input holds: the one value of a list, or all of them joined in order.

    `WorkflowError` for what is no batch.
    """
    for value in values:
        if isinstance(value, Mapping):
            latent_samples(value)
        elif not is_batch(value):
            raise WorkflowError(
                f"expected images, masks, a latent or another tensor, got {_describe(value)}"
            )
    are_tensors = [isinstance(value, torch.Tensor) for value in values]
    if any(are_tensors) and not all(are_tensors):
        raise WorkflowError("cannot join: some parts are latents and others are not")
    return concat(values) if all(are_tensors) else concat_latents(values)


def take(batch: Batch, positions: Sequence[int]) -> Batch:
    """The items at those positions, in that order; a view where they follow each other."""
    if isinstance(batch, torch.Tensor):
        return _rows(batch, positions)
    return cut_latent(batch, [positions])[0]


def _rows(tensor: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    if isinstance(positions, range) and positions.step == 1:
        return tensor[positions.start : positions.stop]
    return tensor[torch.tensor([*positions], dtype=torch.int64, device=tensor.device)]


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


def _describe(value: object) -> str:
    if isinstance(value, Mapping) and is_batch(value):
        return f"a latent of {_describe(value['samples'])}"
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def mask_batch(mask: torch.Tensor) -> torch.Tensor:
    """A mask as a batch [B,H,W]; ComfyUI also passes single masks [H,W]."""
    return mask.unsqueeze(0) if mask.ndim == 2 else mask


def split_to_list(batch: Batch, *, items_per_element: int = 1) -> list[Batch]:
    """A batch as a list of batches of `items_per_element` items each; the last may have fewer."""
    if items_per_element < 1:
        raise WorkflowError(f"items_per_element is {items_per_element}, it must be at least 1")
    item_count = count_items(batch)
    return [
        take(batch, range(start, min(start + items_per_element, item_count)))
        for start in range(0, item_count, items_per_element)
    ]


def flatten_list(batches: Sequence[Batch]) -> list[Batch]:
    """A list of batches as a list in which each element is a batch of one item."""
    return [item for batch in batches for item in split_to_list(batch)]


def insert_at_index(batch: Batch, item: Batch, index: int) -> Batch:
    """The batch with `item` before position `index`; an index past the end appends.

    `item` is a batch of any size, or one tensor without the first dimension. A negative index
    counts from the end, as in `list.insert`. Raises `WorkflowError` when the shapes do not agree.
    """
    if isinstance(batch, torch.Tensor) and isinstance(item, torch.Tensor):
        inserted = item.unsqueeze(0) if item.ndim == batch.ndim - 1 else item
        _check_fits(batch, inserted, item=item, into=batch)
        return concat([batch[:index], inserted, batch[index:]])
    if isinstance(batch, Mapping) and isinstance(item, Mapping):
        _check_fits(latent_samples(batch), latent_samples(item), item=item, into=batch)
        return _insert_latent(batch, item, index)
    raise _does_not_fit(item, batch)


def _check_fits(batch: torch.Tensor, inserted: torch.Tensor, *, item: object, into: object) -> None:
    if inserted.shape[1:] != batch.shape[1:] or inserted.ndim != batch.ndim:
        raise _does_not_fit(item, into)


def _does_not_fit(item: object, batch: object) -> WorkflowError:
    return WorkflowError(
        f"cannot insert: the item is {_describe(item)}, the batch is {_describe(batch)}"
    )


def _insert_latent(latent: Latent, item: Latent, index: int) -> dict[str, Any]:
    """All items keep their noise; new ones without a `batch_index` get one that is not in use."""
    positions = range(count_items(latent))
    front, back = cut_latent(latent, [positions[:index], positions[index:]])
    unused = 1 + max([*front["batch_index"], *back["batch_index"]], default=-1)
    inserted = {**item, "batch_index": _batch_index(item, count_items(item), start=unused)}
    return concat_latents([front, inserted, back])


def strided_reorder(batch: Batch, stride: int) -> Batch:
    """Items in the order 0, s, 2s, ..., 1, s+1, ...: undoes the interleaving of s sequences."""
    if stride < 1:
        raise WorkflowError(f"stride is {stride}, it must be at least 1")
    item_count = count_items(batch)
    order = [
        position
        for start in range(min(stride, item_count))
        for position in range(start, item_count, stride)
    ]
    return take(batch, order)


def item_for_instance(
    batch: Batch, instance_index: int, *, instance_count: int, index_offset: int = 0
) -> Batch | None:
    """The part of a batch that one instance works on, as a view; None if there is nothing for it.

    The first `index_offset` items are skipped. Of the rest, instance i gets item i, as a batch of
    one; when there are more items than instances, it gets its slice of their even split.
    """
    positions = positions_for_instance(
        count_items(batch), instance_index, instance_count=instance_count, index_offset=index_offset
    )
    return take(batch, positions) if positions else None


def items_for_instance(
    values: Sequence[Any], instance_index: int, *, instance_count: int, index_offset: int = 0
) -> list[Any]:
    """What one instance works on of all that an input holds; nothing if there is nothing for it.

    One batch is cut as `item_for_instance` does it. Several values are a list, and so is one value
    that is a list: then it is elements, as many as it would be items.
    """
    elements = values[0] if len(values) == 1 and isinstance(values[0], list | tuple) else values
    if len(elements) == 1 and isinstance(elements[0], torch.Tensor | Mapping):
        part: Any = item_for_instance(
            as_batch(elements),
            instance_index,
            instance_count=instance_count,
            index_offset=index_offset,
        )
        return [] if part is None else [part]
    positions = positions_for_instance(
        len(elements), instance_index, instance_count=instance_count, index_offset=index_offset
    )
    return [elements[position] for position in positions]


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
    """The even split of a latent: one latent for each instance; some may have no items."""
    return cut_latent(latent, split_ranges(count_items(latent), instance_count))


def cut_latent(latent: Latent, parts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """One latent for each of `parts`, of the items at those positions; parts may be empty.

    Each gets the `batch_index` of its items (their positions, where the latent has none), so that
    KSampler draws the noise which the same item would have got in the undivided batch. A
    `noise_mask` of one item stays whole; another one is repeated to the batch's size and cut.
    Tensors under unknown keys are cut when they have one row an item; all else goes to everyone.
    """
    item_count = count_items(latent)
    batch_index = _batch_index(latent, item_count)
    whole = dict(latent)
    if (mask := _full_noise_mask(latent, item_count)) is not None:
        whole["noise_mask"] = mask
    cut_keys = {"samples", *(key for key, value in whole.items() if _has_rows(value, item_count))}
    return [
        {
            **whole,
            **{key: _rows(whole[key], positions) for key in cut_keys},
            "batch_index": [batch_index[position] for position in positions],
        }
        for positions in parts
    ]


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
    cut = {key for part in filled for key in part.get(CUT_KEYS) or ()}
    joined.pop(CUT_KEYS, None)
    for key in joined.keys() - {"samples", "noise_mask", "batch_index"}:
        joined[key] = _join_values([part.get(key) for part in filled], sizes, was_cut=key in cut)
    joined["samples"] = concat(all_samples)
    if "noise_mask" in joined:
        joined["noise_mask"] = _join_noise_masks(filled, sizes, was_cut="noise_mask" in cut)
    _join_batch_index(joined, filled, sizes)
    return joined


def _join_values(values: Sequence[Any], sizes: Sequence[int], *, was_cut: bool) -> Any:
    """Rows joined if each part has its own rows; else the first value that is there."""
    pairs = list(zip(values, sizes, strict=True))
    has_rows = all(
        isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == size
        for value, size in pairs
    )
    if has_rows and (was_cut or not _is_shared(values)):
        return concat(values)
    return next((value for value in values if value is not None), None)


def _is_shared(values: Sequence[torch.Tensor]) -> bool:
    """Whether all parts have the same single row: then it was never cut."""
    first = values[0]
    return all(len(value) == 1 and torch.equal(value.to(first.device), first) for value in values)


def _join_noise_masks(
    parts: Sequence[Latent], sizes: Sequence[int], *, was_cut: bool
) -> torch.Tensor:
    masks = [_full_noise_mask(part, size) for part, size in zip(parts, sizes, strict=True)]
    present = [mask for mask in masks if mask is not None]
    model = present[0]
    is_shared = model.ndim < 3 or (not was_cut and _is_shared(present))
    if len(present) == len(masks) and is_shared:
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
