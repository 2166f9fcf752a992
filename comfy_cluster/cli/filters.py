"""The demo's image filter: ink lines over a sharpened picture. Pure arithmetic on one image.

Bit-identical wherever it runs: only single operations that IEEE 754 rounds in one way (add,
subtract, multiply, compare), in a fixed order, on one image at a time. So neither the batch size,
nor the thread count, nor a vector unit with fused multiply-add changes a bit; a library's
convolution promises no such thing. Imports torch; the demo's leader and followers call it.
"""

from __future__ import annotations

import math

import torch

BLUR_SIGMA = 2.5  # pixels
BLUR_RADIUS = 7  # pixels; further away the weights are below 1 %
BLUR_PASSES = 2  # enough work to be worth sharing
SHARPNESS = 1.5
INK = 4.0


def ink_filter(image: torch.Tensor) -> torch.Tensor:
    """A filtered copy of `image`, float32 [H,W,C] with values in 0..1."""
    blurred = image
    for _ in range(BLUR_PASSES):
        blurred = _blur(_blur(blurred, dim=0), dim=1)
    sharpened = image + (image - blurred) * SHARPNESS
    edges = _slope(blurred, dim=0) + _slope(blurred, dim=1)
    return (sharpened - edges * INK).clamp(0.0, 1.0)


def _blur(image: torch.Tensor, *, dim: int) -> torch.Tensor:
    """Gaussian blur along one dimension; the border pixels continue outwards."""
    padded = _extend(image, BLUR_RADIUS, dim=dim)
    size = image.shape[dim]
    total = torch.zeros_like(image)
    for offset, weight in enumerate(_weights()):
        total = total + padded.narrow(dim, offset, size) * weight
    return total


def _slope(image: torch.Tensor, *, dim: int) -> torch.Tensor:
    padded = _extend(image, 1, dim=dim)
    size = image.shape[dim]
    return (padded.narrow(dim, 2, size) - padded.narrow(dim, 0, size)).abs()


def _extend(image: torch.Tensor, margin: int, *, dim: int) -> torch.Tensor:
    first = image.narrow(dim, 0, 1)
    last = image.narrow(dim, image.shape[dim] - 1, 1)
    return torch.cat([first] * margin + [image] + [last] * margin, dim=dim)


def _weights() -> list[float]:
    distances = range(-BLUR_RADIUS, BLUR_RADIUS + 1)
    raw = [math.exp(-(distance**2) / (2 * BLUR_SIGMA**2)) for distance in distances]
    return [weight / sum(raw) for weight in raw]
