"""Tensors for the tests of codecs over real sockets, and how they are compared."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from comfy_cluster.benchmarks.photographs import COLLAGE, levels_of

HEIGHT, WIDTH = 600, 700  # three images are 14 MiB of float32: several parts, of rows each
NAN_WITH_A_PAYLOAD = 0x7FC01234


def photographs(count: int = 3, *, shift: int = 0) -> torch.Tensor:
    """8-bit images [count, HEIGHT, WIDTH, 3] as ComfyUI makes them, each with other values."""
    items = [photograph().roll(7 * number + shift, dims=1) for number in range(count)]
    return as_values(torch.stack(items))


@cache
def photograph() -> torch.Tensor:
    """Levels [HEIGHT, WIDTH, 3], not to be changed."""
    return torch.from_numpy(levels_of(COLLAGE, WIDTH)[:HEIGHT].copy())


def as_values(levels: torch.Tensor) -> torch.Tensor:
    """k / 255 in float32, by a true division."""
    return levels.to(torch.float32).div_(torch.full((1,), 255.0))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noisy_levels(*shape: int, seed: int = 0) -> torch.Tensor:
    """8-bit images that no codec makes smaller than a byte a value."""
    generator = torch.Generator().manual_seed(seed)
    return as_values(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def special_floats() -> torch.Tensor:
    """Images whose every value is a level, but for NaN, -0.0 and their like."""
    values = photographs(1)[:, :40, :40].contiguous()
    patterns = [-(1 << 31), NAN_WITH_A_PAYLOAD, 0x7F800000, 1]  # -0.0, NaN, infinity, a denormal
    values.view(torch.int32).view(-1)[100:104] = torch.tensor(patterns, dtype=torch.int32)
    return values


def tensors_of_all_kinds() -> dict[str, torch.Tensor]:
    """What travels beside photographs; some of it large enough for several parts."""
    images = photographs(2)
    return {
        "noise": noise(1, 700, 800, 3),
        "noisy levels": noisy_levels(2, 300, 300, 3),
        "masks": images[..., 0].contiguous(),
        "one mask": images[0, ..., 1].contiguous(),
        "four channels": torch.cat([images, images[..., :1]], dim=3)[:, :99].contiguous(),
        "five channels": noisy_levels(2, 9, 9, 5),
        "latents": noise(5, 4, 75, 88),
        "smooth latents": torch.arange(3 << 20).reshape(3, 16, 256, 256).to(torch.float32),
        "video latents": noise(2, 4, 3, 11, 13).to(torch.float64),
        "float16": images[:1].to(torch.float16),
        "bfloat16": noise(3, 16, 80, 100).to(torch.bfloat16),
        "levels of bytes": images[:1].mul(255.0).round().to(torch.uint8),
        "integers": torch.arange(40_000).reshape(2, 20_000) * 977,
        "booleans": images[..., 2] > 0.5,
        "turned images": images.permute(0, 3, 1, 2),
        "every second row": images[:, ::2],
        "repeated": images[:1, :30].expand(4, -1, -1, -1),
        "no images": torch.zeros(0, 64, 64, 3),
        "images of no height": torch.zeros(3, 0, 64, 3),
        "one value": torch.tensor(-0.0),
        "one pixel": torch.ones(1, 1, 1, 3),
        "special": special_floats(),
    }


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Unlike `torch.equal`: NaN equals itself, -0.0 is not 0.0, and dtypes must agree."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    octets = [each.contiguous().view(-1).view(torch.uint8) for each in (one, other)]
    return torch.equal(*octets)


def rounded(values: torch.Tensor) -> torch.Tensor:
    """What IMAGE_PRECISION=uint8 makes of float32 images, worked out without our codec."""
    clipped = np.clip(np.nan_to_num(values.numpy(), nan=0.0), 0.0, 1.0)
    levels = np.rint(clipped * np.float32(255.0)).astype(np.uint8)  # which knows no -0.0
    return torch.from_numpy(levels.astype(np.float32) / np.float32(255.0))
