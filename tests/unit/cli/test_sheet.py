"""The contact sheet: everything is where it belongs, in the right colour."""

from __future__ import annotations

import pytest
import torch

from comfy_cluster.cli import sheet
from comfy_cluster.cli.sheet import FRAME, HEADING_HEIGHT, MARGIN, instance_colour, make_sheet


def plain_batch(*levels: float, size: tuple[int, int] = (144, 144)) -> torch.Tensor:
    width, height = size
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, height, width, 3).contiguous()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("picture_size", [(64, 64), (300, 200), (16, 800)])
def test_the_sheet_has_the_size_that_it_says(count: int, picture_size: tuple[int, int]) -> None:
    batch = plain_batch(*[0.5] * count, size=picture_size)
    image = make_sheet(batch, batch, names=["x"] * count, instances=[0] * count, title="some title")
    assert image.size == sheet.sheet_size(count, picture_size)


def test_before_and_after_stand_side_by_side_in_the_colour_of_their_instance() -> None:
    before, after = plain_batch(0.0, 0.2), plain_batch(1.0, 0.8)
    image = make_sheet(before, after, names=["a", "b"], instances=[3, 7], title="t")
    cell_width = 2 * 144 + 3 * FRAME
    for item, instance in enumerate([3, 7]):
        left = MARGIN + item * (cell_width + MARGIN)
        top = HEADING_HEIGHT
        assert image.getpixel((left, top)) == instance_colour(instance)
        levels = [
            image.getpixel((left + FRAME + 72, top + FRAME + 72)),
            image.getpixel((left + 2 * FRAME + 144 + 72, top + FRAME + 72)),
        ]
        expected = [round(float(batch[item, 0, 0, 0]) * 255) for batch in (before, after)]
        assert levels == [(level,) * 3 for level in expected]


def test_instances_have_colours_of_their_own() -> None:
    assert len({instance_colour(index) for index in range(64)}) == 64


def test_long_and_foreign_names_do_not_leave_their_cell() -> None:
    batch = plain_batch(0.5)
    names = ["\u732b " * 200]
    image = make_sheet(batch, batch, names=names, instances=[0], title="t")
    assert image.size == sheet.sheet_size(1, (144, 144))
