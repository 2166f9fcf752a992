"""Real photographs as 8-bit levels: files of the scikit-image package. No torch, no download.

Most of them are smaller than 1024x1024, and enlarging makes a picture smoother: it compresses
better than a photograph of that size. The first one, a collage of pieces in their own resolution,
does not have that fault.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from comfy_cluster.benchmarks.errors import BenchmarkError

if TYPE_CHECKING:
    from comfy_cluster.codec.levels import Levels

PACKAGE, DISTRIBUTION = "skimage", "scikit-image"
COLLAGE = "collage"
# Files of the wheel itself, also of 0.22: the package's own functions may download.
_FILES = {
    "astronaut": "astronaut.png",
    "coffee": "coffee.png",
    "cat": "chelsea.png",
    "rocket": "rocket.jpg",
    "hubble": "hubble_deep_field.jpg",
    "retina": "retina.jpg",
    "motorcycle": "motorcycle_left.png",
    "tissue": "ihc.png",
}
_COLLAGE_OF = ("astronaut", "hubble", "motorcycle", "tissue")  # 500 rows and more
PHOTOGRAPHS = (COLLAGE, *(name for name in _FILES if name != "tissue"))


def levels_of(name: str, side: int) -> Levels:
    """One of `PHOTOGRAPHS` as levels [side, side, 3]. BenchmarkError: it is not there."""
    return _collage(side) if name == COLLAGE else np.asarray(_fitted(_read(name), side))


def _collage(side: int) -> Levels:
    levels = np.empty((side, side, 3), np.uint8)
    half = side // 2
    for index, name in enumerate(_COLLAGE_OF):
        top, left = (half if index & bit else 0 for bit in (2, 1))
        size = side - half
        levels[top : top + size, left : left + size] = _middle_of(_read(name), size)
    return levels


def _middle_of(image: Image.Image, side: int) -> Levels:
    """The middle in its own resolution; only what is too small is enlarged."""
    width, height = image.size
    if min(width, height) < side:
        return np.asarray(_fitted(image, side))
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def _fitted(image: Image.Image, side: int) -> Image.Image:
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def _read(name: str) -> Image.Image:
    path = _folder() / _FILES[name]
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise BenchmarkError(
            f"the photograph {path} cannot be read: {error}; pip install --force-reinstall "
            f"{DISTRIBUTION} brings it back"
        ) from error


def _folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise BenchmarkError(
            f"{DISTRIBUTION} is not installed, whose photographs are needed: pip install "
            f"{DISTRIBUTION}, and run this again"
        )
    return Path(found.submodule_search_locations[0]) / "data"
