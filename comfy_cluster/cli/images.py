"""The demo's pictures: files of a folder, or generated ones, as one batch.

Errors are click's, because they are about what the user gave. Called by the demo on the leader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from comfy_cluster import identity

Pixels = npt.NDArray[np.float64]
Size = tuple[int, int]

BYTES_PER_PIXEL = 12  # three float32
# The batch, the followers' slices, what they make of it, the join, the single process's results,
# and once more for what is on its way.
BATCH_COPY_COUNT = 6

# Pillow raises these for files that are damaged, truncated, unreasonably large, or no image.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Pictures:
    """A batch of pictures of one size."""

    batch: torch.Tensor
    """float32 [B,H,W,3], every value k/255."""
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was done to make them a batch, in words for the user."""


def load_pictures(folder: Path, *, count: int | None, size: int | None) -> Pictures:
    """The images of `folder`, by name, the first `count` of them.

    Images of one size stay as they are, unless a `size` is asked for; else each is scaled and
    cropped to a square, by default of the size of the smallest side among them.
    """
    paths, notes = _image_paths(folder)
    if count is not None and count > len(paths):
        notes.append(f"there are {len(paths)} images in {folder}, and not {count}")
    images = [_open_image(path) for path in paths[:count]]
    sizes = {image.size for image in images}
    if size is None and len(sizes) == 1:
        wanted = sizes.pop()
    else:
        side = size or min(min(each) for each in sizes)
        wanted = (side, side)
    _check_memory(len(images), wanted)
    fitted = [_fit(image, wanted) for image in images]
    changed_count = sum(image.size != wanted for image in images)
    if changed_count:
        notes.append(
            f"{changed_count} of {len(images)} images were scaled and cropped to "
            f"{wanted[0]}x{wanted[1]}: all items of a batch have one size"
        )
    names = tuple(path.name for path in paths[:count])
    return Pictures(_batch(fitted), names, tuple(notes))


def _image_paths(folder: Path) -> tuple[list[Path], list[str]]:
    suffixes = Image.registered_extensions()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    files = [path for path in files if not path.name.startswith(".")]
    paths = [path for path in files if path.suffix.lower() in suffixes]
    if not paths:
        found = Counter(path.suffix.lower() or "no ending" for path in files)
        seen = ", ".join(f"{number} x {suffix}" for suffix, number in found.most_common(5))
        raise click.BadParameter(
            f"there is no image in {folder} (folders in it are not searched; "
            f"files found: {seen or 'none'}). Give a folder with PNG, JPEG, WebP or other images.",
            param_hint="'--input'",
        )
    skipped_count = len(files) - len(paths)
    if not skipped_count:
        return paths, []
    return paths, [f"files that are no images were skipped, {skipped_count} of {len(files)}"]


def _open_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except _UNREADABLE as error:
        raise click.ClickException(
            f"{path} cannot be read as an image ({error}). Is it damaged? Remove it from the "
            "folder, or replace it."
        ) from error


def _fit(image: Image.Image, size: Size) -> Image.Image:
    if image.size == size:
        return image
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def generate_pictures(count: int, size: int, *, seed: int) -> Pictures:
    """Pictures that look like something; the same ones for the same arguments."""
    _check_memory(count, (size, size))
    images = []
    names = []
    for index in range(count):
        name, paint = _PAINTERS[index % len(_PAINTERS)]
        pixels = paint(size, np.random.default_rng((seed, index)))
        images.append(Image.fromarray(np.uint8(pixels.clip(0.0, 1.0) * 255)))
        names.append(f"{name} {index // len(_PAINTERS) + 1}")
    return Pictures(_batch(images), tuple(names))


def _check_memory(count: int, size: Size) -> None:
    """UsageError: the machine cannot hold the batch as often as the demo needs it."""
    needed = count * size[0] * size[1] * BYTES_PER_PIXEL * BATCH_COPY_COUNT
    available = identity.total_memory()
    if needed > available:
        raise click.UsageError(
            f"{count} images of {size[0]}x{size[1]} need about {needed / 1e9:.1f} GB in all "
            f"instances together, and this machine has {available / 1e9:.1f} GB. Use fewer or "
            "smaller images: --count, --size."
        )


def _batch(images: Sequence[Image.Image]) -> torch.Tensor:
    levels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return levels.to(torch.float32) / 255.0


def _grid(size: int) -> tuple[Pixels, Pixels]:
    """Coordinates x and y from -1 to 1, [size,size] each."""
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    return x, y


def _blend(low: Pixels, high: Pixels, share: Pixels) -> Pixels:
    """A picture [size,size,3] between two colours."""
    return low + (high - low) * share[..., None]


def _clouds(size: int, rng: np.random.Generator, *, octave_count: int = 6) -> Pixels:
    """Smooth noise from 0 to 1, [size,size]."""
    total = np.zeros((size, size))
    for octave in range(octave_count):
        cells = Image.fromarray(np.float32(rng.random((2**octave + 2, 2**octave + 2))))
        smooth = cells.resize((size, size), Image.Resampling.BICUBIC)
        total += np.asarray(smooth, dtype=np.float64) / 2**octave
    total -= total.min()
    total /= total.max()
    return total


def _paint_sunset(size: int, rng: np.random.Generator) -> Pixels:
    x, y = _grid(size)
    top, bottom = rng.uniform(0.1, 0.5, 3), np.array([1.0, rng.uniform(0.4, 0.7), 0.3])
    picture = _blend(top, bottom, (y + 1) / 2)
    sun_x, sun_y, radius = rng.uniform(-0.5, 0.5), rng.uniform(-0.4, 0.2), rng.uniform(0.15, 0.3)
    picture[np.hypot(x - sun_x, y - sun_y) < radius] = (1.0, 0.9, 0.5)
    for depth in range(3):
        phases = rng.uniform(0, 2 * np.pi, 3)
        ridge = sum(np.sin(x * (3 + 4 * k) + phase) / (k + 1) for k, phase in enumerate(phases))
        picture[y > 0.3 + 0.2 * depth + 0.12 * ridge] = np.array([0.25, 0.2, 0.35]) / (depth + 1)
    return picture


def _paint_clouds(size: int, rng: np.random.Generator) -> Pixels:
    share = _clouds(size, rng)
    return _blend(np.array([0.1, 0.3, 0.7]), np.array([1.0, 1.0, 1.0]), share)


def _paint_shapes(size: int, rng: np.random.Generator) -> Pixels:
    x, y = _grid(size)
    picture = np.ones((size, size, 3)) * rng.uniform(0.6, 0.95, 3)
    for _ in range(14):
        centre_x, centre_y = rng.uniform(-1, 1, 2)
        angle, extent = rng.uniform(0, np.pi), rng.uniform(0.1, 0.35)
        across = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
        along = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
        is_disc = rng.random() < 0.5
        distance = np.hypot(across, along) if is_disc else np.maximum(abs(across), abs(along))
        picture[distance < extent] = rng.uniform(0, 1, 3)
    return picture


def _paint_rings(size: int, rng: np.random.Generator) -> Pixels:
    x, y = _grid(size)
    picture = np.empty((size, size, 3))
    for channel in range(3):
        (x1, y1), (x2, y2) = rng.uniform(-1, 1, (2, 2))
        waves = np.sin(np.hypot(x - x1, y - y1) * 24) + np.sin(np.hypot(x - x2, y - y2) * 17)
        picture[..., channel] = 0.5 + waves / 4
    return picture


_PAINTERS: tuple[tuple[str, Callable[[int, np.random.Generator], Pixels]], ...] = (
    ("sunset", _paint_sunset),
    ("clouds", _paint_clouds),
    ("shapes", _paint_shapes),
    ("rings", _paint_rings),
)
