"""How small a tensor would become, told by some of its rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comfy_cluster.codec import CODECS, encode
from comfy_cluster.codec.interruption import interruptible
from comfy_cluster.codec.levels import Levels
from comfy_cluster.codec.sample import begins_with_levels, take_sample


class Countdown:
    """Counts pieces of work."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self) -> None:
        self.left -= 1


GENERATOR = torch.Generator().manual_seed(9)
NOISE = torch.randn(2, 16, 96, 96, generator=GENERATOR)


def image_of(photograph: Levels) -> torch.Tensor:
    return torch.from_numpy(photograph.astype(np.float32) / np.float32(255))[None]


def test_the_sizes_of_a_photograph_are_foretold(photograph: Levels) -> None:
    image = image_of(photograph)
    sample = take_sample(image, is_rounded=False)
    assert sample.is_levels
    for name, expected in sample.sizes(CODECS).items():
        payload = encode(image, codec=name)
        if payload.codec == name:
            assert payload.size / image.nbytes == pytest.approx(expected, rel=0.3), name


def test_floats_are_no_levels_and_their_sizes_are_foretold() -> None:
    smooth = torch.linspace(-1, 1, NOISE.numel()).reshape(NOISE.shape)
    for latent, names in ((NOISE, ("lz4", "zstd")), (smooth, ("zstd",))):
        sample = take_sample(latent, is_rounded=False)
        assert not sample.is_levels
        for name in names:
            size = encode(latent, codec=name).size / latent.nbytes
            assert size == pytest.approx(sample.sizes([name])[name], rel=0.3)
        assert sample.sizes(["png", "raw", "raw8"]) == {"png": 1.0, "raw": 1.0, "raw8": 1.0}


def test_the_first_look_tells_images_from_latents(photograph: Levels) -> None:
    image = image_of(photograph)
    assert begins_with_levels(image) and begins_with_levels(image[0, ..., 0])
    assert begins_with_levels(image.permute(0, 3, 1, 2))
    assert begins_with_levels(torch.zeros(3, 5, dtype=torch.uint8))
    assert not begins_with_levels(NOISE)
    assert not begins_with_levels(torch.zeros(9))
    assert not begins_with_levels(torch.zeros(0, 4, 4, 3))


def test_an_image_to_be_rounded_is_of_levels(photograph: Levels) -> None:
    noisy = image_of(photograph) + 1e-3
    assert not take_sample(noisy, is_rounded=False).is_levels
    assert take_sample(noisy, is_rounded=True).is_levels


def test_only_the_codecs_asked_for_are_judged(photograph: Levels) -> None:
    image = image_of(photograph)
    assert set(take_sample(image, is_rounded=False).sizes(["raw", "webp"])) == {"raw", "webp"}
    assert set(take_sample(NOISE, is_rounded=False).sizes(["raw", "lz4"])) == {"raw", "lz4"}
    assert take_sample(image, is_rounded=False).sizes([]) == {}


@pytest.mark.parametrize(
    "shape",
    [(1,), (5, 1), (1, 5), (3, 4, 5), (2, 3, 4, 5), (7, 1, 2, 3), (2, 2, 2, 2, 2), (70_000,)],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bool, torch.int64])
def test_any_shape_can_be_looked_at(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.zeros(shape).to(dtype)
    sample = take_sample(tensor, is_rounded=False)
    assert sample.sizes(CODECS)["raw"] == 1.0
    turned = tensor.permute(*reversed(range(tensor.ndim)))
    assert take_sample(turned, is_rounded=True).sizes(CODECS)["raw"] == 1.0


@pytest.mark.parametrize("channels", [16_383, 16_384, 16_385, 20_000])
def test_pixels_of_very_many_channels_are_judged(channels: int) -> None:
    tensor = torch.zeros(1, 4, 6, channels)
    sizes = take_sample(tensor, is_rounded=False).sizes(CODECS)
    assert sizes["bitpack"] < 0.05


@pytest.mark.parametrize("kind", ["slope", "steps of eight", "noise"])
def test_the_size_by_bit_packing_is_foretold(kind: str) -> None:
    y, x = np.mgrid[:512, :512]
    levels = {
        "slope": y // 2 + x // 3,
        "steps of eight": y // 8 * 9 + 2 * x,
        "noise": np.random.default_rng(1).integers(0, 256, x.shape),
    }[kind]
    mask = torch.from_numpy(levels.astype(np.uint8))[None]
    foretold = take_sample(mask, is_rounded=False).sizes(["bitpack"])["bitpack"]
    assert encode(mask, codec="bitpack").size / mask.nbytes == pytest.approx(foretold, rel=0.3)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, 2, 8 << 20),
        torch.zeros(1, 64 << 20, dtype=torch.uint8),
        torch.zeros(8, 8, 8, 64, 64).permute(4, 3, 2, 1, 0),
    ],
    ids=["long rows", "one row", "five dimensions"],
)
def test_a_sample_is_small_whatever_the_tensor(tensor: torch.Tensor) -> None:
    counted = Countdown(1 << 20)
    with interruptible(counted):
        take_sample(tensor, is_rounded=False).sizes(CODECS)
    assert (1 << 20) - counted.left < 40  # pieces of work of at most a MiB
