"""Pictures from a folder, and pictures from nothing."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image

from comfy_cluster.cli.images import generate_pictures, load_pictures


def save(path: Path, size: tuple[int, int], colour: tuple[int, ...] = (10, 20, 30)) -> None:
    Image.new("RGB", size, colour).save(path)


def test_generated_pictures_depend_on_their_seed_alone() -> None:
    first = generate_pictures(6, 40, seed=5)
    again = generate_pictures(6, 40, seed=5)
    other = generate_pictures(6, 40, seed=6)
    assert first.batch.shape == (6, 40, 40, 3)
    assert torch.equal(first.batch, again.batch)
    assert not torch.equal(first.batch, other.batch)
    assert len(set(first.names)) == 6


def test_generated_pictures_are_all_different_and_show_something() -> None:
    batch = generate_pictures(8, 40, seed=0).batch
    assert len({image.numpy().tobytes() for image in batch}) == 8
    assert (batch.flatten(1).std(dim=1) > 0.05).all()


def test_values_are_levels_over_255_as_comfyui_loads_them(tmp_path: Path) -> None:
    levels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    Image.fromarray(levels).save(tmp_path / "a.png")
    batch = load_pictures(tmp_path, count=None, size=None).batch
    assert batch.dtype == torch.float32
    assert torch.equal(batch[0], torch.from_numpy(levels.astype(np.float32) / 255.0))


def test_images_of_one_size_stay_as_they_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    save(tmp_path / "b.png", (30, 20), (255, 0, 0))
    save(tmp_path / "a.png", (30, 20), (0, 255, 0))
    pictures = load_pictures(tmp_path, count=None, size=None)
    assert pictures.names == ("a.png", "b.png")
    assert pictures.batch.shape == (2, 20, 30, 3)
    assert pictures.batch[:, 0, 0].tolist() == [[0, 1, 0], [1, 0, 0]]
    assert pictures.notes == ()


def test_images_of_several_sizes_are_fitted_and_it_is_said(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (30, 20))
    save(tmp_path / "b.png", (50, 24))
    pictures = load_pictures(tmp_path, count=None, size=None)
    assert pictures.batch.shape == (2, 20, 20, 3)
    assert pictures.notes[0].startswith("2 of 2 images were scaled and cropped to 20x20")


def test_a_size_that_is_asked_for_holds(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (30, 20))
    save(tmp_path / "b.png", (16, 16))
    pictures = load_pictures(tmp_path, count=None, size=16)
    assert pictures.batch.shape == (2, 16, 16, 3)
    assert pictures.notes[0].startswith("1 of 2 images")


def test_a_count_takes_the_first_ones(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png", (16, 16))
    assert load_pictures(tmp_path, count=2, size=None).names == ("a.png", "b.png")
    pictures = load_pictures(tmp_path, count=9, size=None)
    assert len(pictures.batch) == 3
    assert "there are 3 images" in pictures.notes[0]


def test_other_files_are_skipped_and_it_is_said(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", (16, 16))
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / ".hidden.png").write_text("no image, but nobody sees it")
    (tmp_path / "folder.png").mkdir()
    pictures = load_pictures(tmp_path, count=None, size=None)
    assert pictures.names == ("a.jpg",)
    assert pictures.notes == ("files that are no images were skipped, 1 of 2",)


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (16, 16), 255).save(tmp_path / "a.png")
    Image.new("P", (16, 16)).save(tmp_path / "b.gif")
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "c.png")
    assert load_pictures(tmp_path, count=None, size=None).batch.shape == (3, 16, 16, 3)


def test_a_folder_without_images_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(click.BadParameter, match=r"there is no image in .*1 x \.txt"):
        load_pictures(tmp_path, count=None, size=None)


@pytest.mark.parametrize("content", [b"", b"no image", b"truncated"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "good.png", (64, 64))
    if content == b"truncated":
        whole = (tmp_path / "good.png").read_bytes()
        content = whole[: len(whole) - 30]
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(click.ClickException, match=r"odd\.png cannot be read as an image"):
        load_pictures(tmp_path, count=None, size=None)


def test_more_than_the_machine_can_hold_is_refused_before_it_is_made() -> None:
    with pytest.raises(click.UsageError, match=r"Use fewer or smaller images"):
        generate_pictures(10_000, 8192, seed=0)
