"""What tensors hold: random floats, pictures, masks, latents. Made, not sent; for instances only.

Everything is float32 here; every picture is [B,H,W,C], a mask [B,H,W], a latent [B,C,H,W].
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from comfy_cluster.benchmarks.photographs import PHOTOGRAPHS, levels_of
from comfy_cluster.benchmarks.transfers import Content

LEVEL_COUNT = 256
COARSE_SIDE = 16  # values in a row and a column that smooth shades go through
VAE_NOISE = 2e-3  # half a level: what a VAE's output differs by from the nearest 8-bit image
LATENT_NOISE = 0.1

Shape = tuple[int, ...]


def make_content(
    content: Content, shape: Shape, generator: torch.Generator, *, photograph: int = 0
) -> torch.Tensor:
    """A float32 tensor. `photograph`: the number of the first one, where it is of photographs."""
    if content in (Content.PHOTOGRAPH, Content.NOISY_PHOTOGRAPH):
        values = _photographs(shape, photograph)
        if content is Content.PHOTOGRAPH:
            return values
        return (values + VAE_NOISE * torch.randn(shape, generator=generator)).clamp(0, 1)
    return _MAKERS[content](shape, generator)


def values_of(levels: torch.Tensor) -> torch.Tensor:
    """The value k/255 of each level k, as ComfyUI has it."""
    # A tensor as divisor: for a plain number torch may multiply by 1/255, which has other bits.
    return levels.to(torch.float32) / torch.tensor([LEVEL_COUNT - 1.0])


def _random(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator)


def _image_like(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """8-bit pictures: smooth shades with the grain of a photograph."""
    batch, height, width, channels = shape
    planes = (batch, channels, height, width)
    grain = torch.randn(planes, generator=generator) / 128
    return _rounded(_smooth(planes, generator) + grain).permute(0, 2, 3, 1).contiguous()


def _photographs(shape: Shape, first: int) -> torch.Tensor:
    batch, height, width, channels = shape
    if height != width or channels != 3:
        raise ValueError(f"photographs are [B,side,side,3], not {list(shape)}")
    names = [PHOTOGRAPHS[(first + item) % len(PHOTOGRAPHS)] for item in range(batch)]
    levels = [torch.from_numpy(levels_of(name, height).copy()) for name in names]
    return values_of(torch.stack(levels))


def _soft_mask(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """A shape with wide soft edges, as a blur makes them: 0 and 1, and all floats between."""
    return (3 * _smooth(shape, generator) - 1).clamp(0, 1)


def _level_mask(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    return _rounded(_soft_mask(shape, generator))


def _binary_mask(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    return _soft_mask(shape, generator).round()


def _noise(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def _smooth_latent(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Shades and some noise: nearer to the latent of a picture than noise alone."""
    shades = 4 * _smooth(shape, generator) - 2
    return shades + LATENT_NOISE * torch.randn(shape, generator=generator)


def _smooth(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Shades around 0.5 over the last two dimensions."""
    height, width = shape[-2:]
    planes = shape if len(shape) == 4 else (shape[0], 1, height, width)
    coarse = torch.rand(*planes[:2], COARSE_SIDE, COARSE_SIDE, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return wide.reshape(shape)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return values_of((values.clamp(0, 1) * (LEVEL_COUNT - 1)).round())


_MAKERS: dict[Content, Callable[[Shape, torch.Generator], torch.Tensor]] = {
    Content.RANDOM: _random,
    Content.IMAGE: _image_like,
    Content.SOFT_MASK: _soft_mask,
    Content.LEVEL_MASK: _level_mask,
    Content.BINARY_MASK: _binary_mask,
    Content.NOISE_LATENT: _noise,
    Content.SMOOTH_LATENT: _smooth_latent,
}
