"""The contact sheet: each picture before and after, in the colour of the instance that did it.

Makes one image in memory; the demo writes it to a file.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

THUMBNAIL_SIDE = 144  # pixels; the longer side
MARGIN = 8
FRAME = 4
CAPTION_HEIGHT = 18
HEADING_HEIGHT = 44
LARGEST_COLUMN_COUNT = 4  # pairs
BACKGROUND = (24, 24, 28)
TEXT_COLOUR = (235, 235, 235)
DARK_TEXT_COLOUR = (15, 15, 15)
GOLDEN_RATIO = 0.618034  # hues this far apart stay distinct, however many there are

Colour = tuple[int, int, int]
Size = tuple[int, int]


def instance_colour(instance: int) -> Colour:
    """A bright colour of its own for each instance."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + instance * GOLDEN_RATIO) % 1.0, 0.55, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def sheet_size(count: int, picture_size: Size) -> Size:
    """Width and height of the sheet for `count` pictures of `picture_size`, all in pixels."""
    columns = _column_count(count)
    width, height = _cell_size(picture_size)
    rows = -(-count // columns)
    return (
        MARGIN + columns * (width + MARGIN),
        HEADING_HEIGHT + rows * (height + MARGIN),
    )


def make_sheet(
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    *,
    names: Sequence[str],
    instances: Sequence[int],
    title: str,
) -> Image.Image:
    """The sheet of two batches [B,H,W,3]; `names` and `instances` tell of each item."""
    picture_size = (inputs.shape[2], inputs.shape[1])
    sheet = Image.new("RGB", sheet_size(len(inputs), picture_size), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _draw_heading(draw, title, sorted(set(instances)))
    cell_width, cell_height = _cell_size(picture_size)
    columns = _column_count(len(inputs))
    for item, (name, instance) in enumerate(zip(names, instances, strict=True)):
        row, column = divmod(item, columns)
        corner = (
            MARGIN + column * (cell_width + MARGIN),
            HEADING_HEIGHT + row * (cell_height + MARGIN),
        )
        pair = [_thumbnail(inputs[item]), _thumbnail(outputs[item])]
        _draw_cell(sheet, draw, corner, pair=pair, name=name, instance=instance)
    return sheet


def _column_count(count: int) -> int:
    return min(LARGEST_COLUMN_COUNT, count)


def _cell_size(picture_size: Size) -> Size:
    width, height = _thumbnail_size(picture_size)
    return 2 * width + 3 * FRAME, height + 2 * FRAME + CAPTION_HEIGHT


def _thumbnail_size(picture_size: Size) -> Size:
    scale = THUMBNAIL_SIDE / max(picture_size)
    return max(1, round(picture_size[0] * scale)), max(1, round(picture_size[1] * scale))


def _thumbnail(picture: torch.Tensor) -> Image.Image:
    levels = (picture * 255.0).round().clamp(0, 255).to(torch.uint8).numpy()
    image = Image.fromarray(np.ascontiguousarray(levels))
    return image.resize(_thumbnail_size(image.size), Image.Resampling.LANCZOS)


def _draw_heading(draw: ImageDraw.ImageDraw, title: str, instances: Sequence[int]) -> None:
    font = ImageFont.load_default()
    draw.text((MARGIN, 6), title, fill=TEXT_COLOUR, font=font)
    left = float(MARGIN)
    for instance in instances:
        text = f"instance {instance}"
        draw.text((left, 24), text, fill=instance_colour(instance), font=font)
        left += draw.textlength(text + "   ", font=font)


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: Size,
    *,
    pair: Sequence[Image.Image],
    name: str,
    instance: int,
) -> None:
    width, height = _cell_size(pair[0].size)
    left, top = corner
    colour = instance_colour(instance)
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
    caption = _shortened(draw, f"{instance}: {name}", width - 2 * FRAME)
    position = (left + FRAME, top + height - CAPTION_HEIGHT)
    draw.text(position, caption, fill=DARK_TEXT_COLOUR, font=ImageFont.load_default())
    for image in pair:
        left += FRAME
        sheet.paste(image, (left, top + FRAME))
        left += image.width


def _shortened(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    font = ImageFont.load_default()
    printable = text.encode("latin-1", "replace").decode(
        "latin-1"
    )  # Pillow's bitmap font has these
    if draw.textlength(printable, font=font) <= width:
        return printable
    while printable and draw.textlength(printable + "...", font=font) > width:
        printable = printable[:-1]
    return printable + "..."
