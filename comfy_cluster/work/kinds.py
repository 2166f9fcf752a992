"""What can be cut over instances and joined again: images, masks, latents. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from comfy_cluster import batches
from comfy_cluster.errors import WorkflowError

Allocate = Callable[[int], memoryview]
"""Gives writable memory of so many bytes; torch's own where there is none of those."""


@dataclass(frozen=True, slots=True)
class BatchKind:
    """How values of one ComfyUI type are counted, cut and joined."""

    name: str
    """What its items are called, in texts."""
    is_image: bool
    """It may travel as 8-bit levels where IMAGE_PRECISION allows it."""
    count: Callable[[Any], int]
    """Items of a value. WorkflowError: it is no such value."""
    cut: Callable[[Any, range], Any]
    """Those items of a value, as views."""
    join: Callable[[Sequence[Any], Allocate | None], Any]
    """The inverse, in memory of that. WorkflowError: they do not fit together."""
    describe: Callable[[Any], str]
    """Shape and dtype, for people."""


def _tensor(value: Any, name: str, dimensions: tuple[int, ...]) -> torch.Tensor:
    if isinstance(value, torch.Tensor) and value.ndim in dimensions and not value.is_nested:
        return value
    found = (
        f"a tensor of shape {list(value.shape)}"
        if isinstance(value, torch.Tensor)
        else f"{type(value).__name__}"
    )
    raise WorkflowError(f"expected {name} as a batch, got {found}")


def _images(value: Any) -> torch.Tensor:
    return _tensor(value, "images [B,H,W,C]", (4,))


def _masks(value: Any) -> torch.Tensor:
    return batches.mask_batch(_tensor(value, "masks [B,H,W]", (2, 3)))


def _latent(value: Any) -> Any:
    if not isinstance(value, dict):
        raise WorkflowError(f"expected a latent, got {type(value).__name__}")
    return value


def _cut_latent(latent: Any, part: range) -> Any:
    cut = batches.cut_latent(latent, [part])[0]
    count = batches.count_items(latent)
    rows = [key for key, value in latent.items() if _was_cut(key, value, count)]
    return {**cut, batches.CUT_KEYS: sorted(rows)} if rows else cut


def _was_cut(key: str, value: Any, count: int) -> bool:
    if not isinstance(value, torch.Tensor) or value.ndim == 0 or key == "samples":
        return False
    return len(value) > 1 if key == "noise_mask" else len(value) == count > 1


def _describe(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


IMAGES = BatchKind(
    name="images",
    is_image=True,
    count=lambda value: len(_images(value)),
    cut=lambda value, part: value[part.start : part.stop],
    join=batches.concat,
    describe=lambda value: _describe(_images(value)),
)
MASKS = BatchKind(
    name="masks",
    is_image=True,
    count=lambda value: len(_masks(value)),
    cut=lambda value, part: _masks(value)[part.start : part.stop],
    join=lambda parts, allocate: batches.concat([_masks(part) for part in parts], allocate),
    describe=lambda value: _describe(_masks(value)),
)
LATENTS = BatchKind(
    name="latents",
    is_image=False,
    count=lambda value: batches.count_items(batches.latent_samples(_latent(value))),
    cut=lambda value, part: _cut_latent(value, part),
    join=lambda parts, allocate: batches.concat_latents(parts),  # a few MB
    describe=lambda value: _describe(batches.latent_samples(_latent(value))),
)


def with_positions(latents: list[Any], parts: Sequence[range]) -> list[Any]:
    """Latents with the positions of their items, one for each part that an instance works on.

    Of a single part there may be several, made with the elements of a list from upstream. A list
    of another length is not the fan-out's: nothing is known of it, and it stays as it is.
    """
    if len(parts) == 1:
        parts = [parts[0]] * len(latents)
    if len(latents) != len(parts):
        return latents
    return [tell_positions(latent, part) for latent, part in zip(latents, parts, strict=True)]


def tell_positions(latent: Any, positions: range) -> Any:
    """The latent with the positions of its items in the whole batch, if it does not tell them."""
    fits = len(batches.latent_samples(_latent(latent))) == len(positions)
    return (
        {**latent, "batch_index": list(positions)}
        if fits and "batch_index" not in latent
        else latent
    )
