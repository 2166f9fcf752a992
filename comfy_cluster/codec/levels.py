"""Images and masks as 8-bit levels k = 0..255, and back. Knows no file format.

A float tensor *is* an 8-bit image when each value has the very bits of float32(k) / float32(255):
that is what ComfyUI's LoadImage makes. -0.0, NaN and a value one bit off are not such values.
Called by `tensors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from comfy_cluster import fastpath
from comfy_cluster.codec.interruption import PIECE_SIZE
from comfy_cluster.codec.pieces import pieces

Levels = npt.NDArray[np.uint8]

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LEVEL_DTYPES = (torch.uint8, *FLOAT_DTYPES)
_SCALE = 255.0
# Elements looked at in one go: 256 KiB of float32 stay in the cache, and a tensor that is no 8-bit
# image (a VAE's output, a latent) is found out by the first piece.
_PIECE = 1 << 16


def item_layout(shape: Sequence[int]) -> tuple[int, int, int, int] | None:
    """(items, height, width, channels) of an image [B,H,W,C] or mask [B,H,W] or [H,W], else None.

    Any channel count: latents have such shapes too, but no levels. None for zero-size tensors.
    """
    if len(shape) == 4:
        layout = (shape[0], shape[1], shape[2], shape[3])
    elif len(shape) == 3:
        layout = (shape[0], shape[1], shape[2], 1)
    elif len(shape) == 2:
        layout = (1, shape[0], shape[1], 1)
    else:
        return None
    return layout if min(layout) > 0 else None


def exact_levels(tensor: torch.Tensor) -> torch.Tensor | None:
    """The levels of a contiguous CPU tensor, or None unless they give back the same bits."""
    if tensor.dtype == torch.uint8:
        return tensor
    if tensor.dtype != torch.float32:
        return None
    values = tensor.reshape(-1)
    levels = torch.empty(values.shape, dtype=torch.uint8, device="cpu")
    for place, piece in pieces(values, PIECE_SIZE // values.itemsize):
        if not fastpath.find_levels(piece.numpy().data, levels[place].numpy().data):
            return None
    return levels.reshape(tensor.shape)


def rounded_levels(tensor: torch.Tensor) -> torch.Tensor:
    """The nearest levels of a contiguous CPU float tensor: clipped to 0..1, NaN becomes 0."""
    values = tensor.reshape(-1)
    levels = torch.empty(values.shape, dtype=torch.uint8, device="cpu")
    for place, piece in pieces(values, _PIECE):
        working = piece.to(_working_dtype(tensor.dtype))
        scaled = working.nan_to_num(nan=0.0).mul_(_SCALE).round_().clamp_(0.0, _SCALE)
        levels[place].copy_(scaled)
    return levels.reshape(tensor.shape)


def levels_to_values(levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Levels as values of `dtype`: k for uint8, else k / 255 computed in float32 or wider."""
    if dtype == torch.uint8:
        return levels
    values = torch.empty(levels.shape, dtype=dtype, device="cpu")
    fill_values(levels, values)
    return values


def fill_values(levels: torch.Tensor, values: torch.Tensor) -> None:
    """`levels_to_values` into the memory of a contiguous CPU tensor of as many elements."""
    flat = values.view(-1)
    count = PIECE_SIZE // 4 if values.dtype == torch.float32 else _PIECE
    for place, piece in pieces(levels.reshape(-1), count):
        if values.dtype == torch.float32:
            fastpath.restore_values(piece.numpy().data, flat[place].numpy().data)
        elif values.dtype == torch.uint8:
            flat[place].copy_(piece)
        else:
            flat[place].copy_(_divided(piece, values.dtype))


def _divided(levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # A tensor as divisor: for a plain number torch may multiply by 1/255, which has other bits.
    divisor = torch.full((1,), _SCALE, dtype=_working_dtype(dtype), device="cpu")
    return levels.to(divisor.dtype).div_(divisor).to(dtype)


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
