"""Codec work ends early where it is told to, whatever it is busy with, and piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from comfy_cluster import codec
from comfy_cluster.codec.interruption import PIECE_SIZE, check_interruption, interruptible


class Unwanted(Exception):
    pass


class Countdown:
    """Lets `allowed` pieces of work pass and refuses the next one."""

    def __init__(self, allowed: int) -> None:
        self.left = allowed

    def __call__(self) -> None:
        if self.left == 0:
            raise Unwanted
        self.left -= 1


def image(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    levels = torch.randint(0, 256, (count, size, size, 3), generator=generator)
    return (levels // 64).to(torch.float32).div_(torch.full((1,), 255.0))


def received(tensor: torch.Tensor, codec_name: str, *, offset: int = 0) -> memoryview:
    payload = codec.encode(tensor, codec=codec_name)
    memory = memoryview(bytearray(offset + payload.size))[offset:]
    memory[:] = payload.prefix + bytes(payload.body)
    return memory


IMAGES = image(3, 512)
ONE_IMAGE = image(1, 1024)
BOOLEANS = torch.zeros(3 * PIECE_SIZE, dtype=torch.bool)
STRAIGHT = torch.arange(PIECE_SIZE, dtype=torch.int32)
OTHER_BITS = torch.full((2 * PIECE_SIZE,), 2, dtype=torch.uint8).view(torch.bool)
LATENT = torch.arange(PIECE_SIZE, dtype=torch.float32)
BATCH_FILE = received(IMAGES, "png")
FILE = received(ONE_IMAGE, "png")
BOOLEAN_BYTES = received(BOOLEANS, "raw")
UNALIGNED = received(STRAIGHT, "raw", offset=1)
BANDS = received(ONE_IMAGE, "zstd")
PACKED = received(ONE_IMAGE, "bitpack")
BLOCKS = received(LATENT, "lz4")
WEBP_FILES = received(IMAGES, "webp")
PART = codec.Place((2, *IMAGES.shape), 0, 2)
PART_PAYLOAD = codec.encode(IMAGES, codec="lz4", place=PART)
PART_OF_BATCH = PART_PAYLOAD.prefix + bytes(PART_PAYLOAD.body)

# The work, and its bytes: those that it reads or those that it writes.
WORK: dict[str, tuple[Callable[[], object], int]] = {
    "exact image": (lambda: codec.encode(IMAGES), IMAGES.nbytes),
    "one large image": (lambda: codec.encode(ONE_IMAGE), ONE_IMAGE.nbytes),
    "rounded image": (
        lambda: codec.encode(IMAGES, codec="raw", precision="uint8", is_image=True),
        2 * IMAGES.nbytes,
    ),
    "strided": (lambda: codec.encode(IMAGES.permute(3, 2, 1, 0), codec="raw"), IMAGES.nbytes),
    "strided rows": (lambda: codec.encode(STRAIGHT[None].expand(5, -1)), 5 * STRAIGHT.nbytes),
    "booleans": (lambda: codec.encode(BOOLEANS), BOOLEANS.nbytes),
    "booleans of other bits": (lambda: codec.encode(OTHER_BITS), OTHER_BITS.nbytes),
    "bands": (lambda: codec.encode(ONE_IMAGE, codec="zstd"), ONE_IMAGE.nbytes),
    "blocks": (lambda: codec.encode(LATENT, codec="lz4"), LATENT.nbytes),
    "a batch of WebP files": (lambda: codec.encode(IMAGES, codec="webp"), IMAGES.nbytes),
    "packed rows": (lambda: codec.encode(ONE_IMAGE, codec="bitpack"), ONE_IMAGE.nbytes),
    "received packed rows": (lambda: codec.decode(PACKED), ONE_IMAGE.nbytes),
    "received bands": (lambda: codec.decode(BANDS), ONE_IMAGE.nbytes),
    "received blocks": (lambda: codec.decode(BLOCKS), LATENT.nbytes),
    "received WebP files": (lambda: codec.decode(WEBP_FILES), IMAGES.nbytes),
    "a part": (lambda: codec.Assembly(PART_OF_BATCH).add(0, PART_OF_BATCH), IMAGES.nbytes),
    "a batch of files": (lambda: codec.decode(BATCH_FILE), IMAGES.nbytes),
    "a file": (lambda: codec.decode(FILE), ONE_IMAGE.nbytes),
    "received booleans": (lambda: codec.decode(BOOLEAN_BYTES), BOOLEANS.nbytes),
    "unaligned": (lambda: codec.decode(UNALIGNED), STRAIGHT.nbytes),
}


@pytest.mark.parametrize("name", WORK)
def test_no_piece_is_large_and_work_ends_between_any_two(name: str) -> None:
    work, size = WORK[name]
    enough = Countdown(1 << 20)
    with interruptible(enough):
        work()
    piece_count = (1 << 20) - enough.left
    assert piece_count >= size // PIECE_SIZE
    for allowed in {0, 1, piece_count // 3, piece_count // 2, piece_count - 1}:
        with interruptible(Countdown(allowed)), pytest.raises(Unwanted):
            work()


def test_a_long_image_of_one_row_is_cut_too() -> None:
    row = (torch.arange(5 * PIECE_SIZE) % 7).to(torch.uint8).reshape(1, -1)
    enough = Countdown(100)
    with interruptible(enough):
        payload = codec.encode(row)
    assert payload.codec == "png" and enough.left <= 95
    assert torch.equal(codec.decode(payload.prefix + bytes(payload.body)), row)


@pytest.mark.parametrize("shape", [(1, 700, 1000, 3), (2, 1_200_000), (3, 1100, 1000)])
def test_pieces_change_nothing(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(11)
    levels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    values = levels.to(torch.float32).div_(torch.full((1,), 255.0))
    for tensor in (levels, values, levels.transpose(0, 1), values.transpose(-1, 0)):
        for name in ("raw", "png", "lz4"):
            assert torch.equal(codec.decode(received(tensor, name)), tensor)


def test_nothing_is_interrupted_outside() -> None:
    outer, inner = Countdown(1), Countdown(0)
    with interruptible(outer):
        with interruptible(inner), pytest.raises(Unwanted):
            check_interruption()
        check_interruption()
    check_interruption()
    assert outer.left == 0
