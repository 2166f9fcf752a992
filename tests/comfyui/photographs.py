"""Photographs as files, for the input folder of one instance."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from comfy_cluster.benchmarks.photographs import PHOTOGRAPHS, levels_of


def write_photographs(folder: Path, count: int, *, height: int, width: int) -> None:
    """PNG files, all different: pieces of larger photographs, from left to right."""
    folder.mkdir(parents=True, exist_ok=True)
    side = 2 * max(height, width)
    pictures = [Image.fromarray(levels_of(name, side)) for name in PHOTOGRAPHS]
    for index in range(count):
        turn, picture = divmod(index, len(pictures))
        left = turn * 7 % (side - width)
        top = (turn * 13 + 5 * picture) % (side - height)
        piece = pictures[picture].crop((left, top, left + width, top + height))
        piece.save(folder / f"{index:04}.png", compress_level=1)
