"""Rows of levels in few bits: the form, on both engines."""

from __future__ import annotations

import random
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest

from tests.fuzz.guarded import GuardedMemory

Rows = npt.NDArray[np.uint8]


def slopes(height: int, width: int, channels: int) -> Rows:
    """Like a photograph: colours of their own that change slowly, and some noise."""
    y, x, channel = np.mgrid[:height, :width, :channels]
    noise = np.random.default_rng(3).integers(0, 3, y.shape)
    rows: Rows = (2 * y + x + 60 * channel + noise).astype(np.uint8).reshape(height, -1)
    return rows


def pack(engine: ModuleType, rows: Rows, stride: int, *, has_above: bool = False) -> bytes:
    memory = rows.data.cast("B")
    return bytes(engine.pack_rows(memory, rows.shape[1], stride=stride, has_above=has_above))


def unpack(
    engine: ModuleType, packed: bytes, like: Rows, stride: int, *, has_above: bool = False
) -> Rows | None:
    rows = np.full_like(like, 0x5A)
    if has_above:
        rows[0] = like[0]
    is_packed = engine.unpack_rows(
        packed, rows.data.cast("B"), rows.shape[1], stride=stride, has_above=has_above
    )
    return rows if is_packed else None


def same(found: Rows | None, rows: Rows) -> bool:
    return found is not None and np.array_equal(found, rows)


def test_the_form_is_as_told(engine: ModuleType) -> None:
    row = np.array([[1, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 7]], np.uint8)
    packed = pack(engine, row, 17)
    # 2, 6, 0, 4 and 1 as zigzag: three bits each; and 14, of four.
    assert packed[:2] == bytes([0, 3 | 4 << 4])
    assert int.from_bytes(packed[2:5], "little") == 2 | 6 << 3 | 0 << 6 | 4 << 9
    assert int.from_bytes(packed[5:8], "little") == 1 << 21
    assert packed[8:] == (14).to_bytes(8, "little")
    assert same(unpack(engine, packed, row, 17), row)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [37, 64, 101])
def test_slopes_are_foretold_by_their_gradient(
    engine: ModuleType, channels: int, width: int
) -> None:
    y, x, channel = np.mgrid[:64, :width, :channels]
    rows = (3 * x + 5 * y + (x * y >> 6) + 90 * channel).astype(np.uint8).reshape(64, -1)
    packed = pack(engine, rows, channels)
    assert packed[0] == 1
    assert len(packed) < rows.size // 2
    assert same(unpack(engine, packed, rows, channels), rows)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("has_above", [False, True])
def test_any_pixels_come_back(engine: ModuleType, channels: int, has_above: bool) -> None:
    for height, width in ((2, 1), (2, 40), (9, 5), (33, 31)):
        rows = slopes(height, width, channels)
        packed = pack(engine, rows, channels, has_above=has_above)
        found = unpack(engine, packed, rows, channels, has_above=has_above)
        assert same(found, rows)


def test_noise_grows_by_its_head_alone(engine: ModuleType, rng: random.Random) -> None:
    rows = np.frombuffer(rng.randbytes(64 * 96), np.uint8).reshape(64, 96)
    packed = pack(engine, rows, 3)
    assert len(packed) <= 1 + rows.size // 32 + rows.size
    assert same(unpack(engine, packed, rows, 3), rows)


def test_one_colour_is_next_to_nothing(engine: ModuleType) -> None:
    rows = np.zeros((64, 96), np.uint8)
    assert len(pack(engine, rows, 3)) == 1 + rows.size // 32
    rows = np.full((64, 96), 200, np.uint8)
    assert len(pack(engine, rows, 3)) < 1 + rows.size // 32 + 2 * rows.shape[1]


def test_rows_from_the_middle_need_the_one_above(engine: ModuleType) -> None:
    rows = slopes(20, 30, 3)
    packed = pack(engine, rows[9:], 3, has_above=True)
    assert len(packed) < len(pack(engine, rows[10:], 3))
    assert same(unpack(engine, packed, rows[9:], 3, has_above=True), rows[9:])


def test_rows_that_repeat_by_powers_of_two_are_foretold_well(engine: ModuleType) -> None:
    y, x = np.mgrid[:64, :96]
    for height in (2, 4, 8):
        rows = (y // height * 9 + 2 * x).astype(np.uint8)
        assert pack(engine, rows, 1)[0] == 1


def test_what_changes_while_it_is_unpacked_harms_no_other_memory(
    engine: ModuleType, rng: random.Random
) -> None:
    """As a mapping that its sender writes to: here the rows are written over what they are of."""
    rows = np.frombuffer(rng.randbytes(64 * 96), np.uint8).reshape(64, 96)
    packed = pack(engine, rows, 3)
    for offset in (1, 2, 3, 9, 40, 190):
        memory = np.full(offset + len(packed) + 64, 0xA5, np.uint8)
        memory[: len(packed)] = np.frombuffer(packed, np.uint8)
        target = memory[offset : offset + rows.size]
        engine.unpack_rows(memory[: len(packed)], target, 96, stride=3, has_above=False)
        assert (memory[max(len(packed), offset + rows.size) :] == 0xA5).all()


def test_nothing_beyond_the_memory_is_touched(engine: ModuleType, rng: random.Random) -> None:
    source, target = GuardedMemory(1 << 16), GuardedMemory(1 << 16)
    for _ in range(300):
        shape = rng.randint(1, 9), rng.randint(1, 9), rng.randint(1, 5)
        rows = rows_of(rng, shape, rng.choice(["slopes", "noise", "few"]))
        given = source.holding(rows.tobytes())
        packed = engine.pack_rows(given, rows.shape[1], stride=shape[2], has_above=False)
        if rng.random() < 0.3:
            packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
        engine.unpack_rows(
            source.holding(bytes(packed)),
            target.view(rows.size),
            rows.shape[1],
            stride=shape[2],
            has_above=False,
        )


@pytest.mark.parametrize("change", ["cut", "longer", "predictor", "width", "padding", "empty"])
def test_what_is_no_packed_rows_is_refused_before_anything_is_written(
    engine: ModuleType, change: str
) -> None:
    rows = slopes(5, 9, 1)  # 45 levels: three blocks
    packed = bytearray(pack(engine, rows, 1))
    if change == "cut":
        packed.pop()
    elif change == "longer":
        packed += b"\0"
    elif change == "predictor":
        packed[0] = 2
    elif change == "width":
        packed[1] = 9 | packed[1] & 0xF0
    elif change == "padding":
        packed[2] |= 0x10
    else:
        packed.clear()
    target = np.full_like(rows, 0x5A)
    assert not engine.unpack_rows(packed, target.data.cast("B"), 9, stride=1, has_above=False)
    assert (target == 0x5A).all()


@pytest.mark.parametrize(
    ("size", "row_size", "stride", "has_above"),
    [
        (10, 3, 1, False),
        (10, 0, 1, False),
        (0, 5, 1, False),
        (5, 5, 1, True),
        (10, 5, 0, False),
        (10, 5, 6, False),
        (10, 5, 3, False),
    ],
)
def test_what_are_no_rows_is_refused(
    engine: ModuleType, size: int, row_size: int, stride: int, has_above: bool
) -> None:
    with pytest.raises(ValueError, match=r"no whole rows|a pixel of"):
        engine.pack_rows(bytes(size), row_size, stride=stride, has_above=has_above)
    with pytest.raises(ValueError, match=r"no whole rows|a pixel of"):
        engine.unpack_rows(b"", bytearray(size), row_size, stride=stride, has_above=has_above)


def test_memory_that_is_not_writable_is_refused(engine: ModuleType) -> None:
    with pytest.raises(BufferError):
        engine.unpack_rows(b"", bytes(4), 2, stride=1, has_above=False)


def rows_of(rng: random.Random, shape: tuple[int, int, int], kind: str) -> Rows:
    if kind == "slopes":
        return slopes(*shape)
    octets = np.frombuffer(rng.randbytes(shape[0] * shape[1] * shape[2]), np.uint8)
    return (octets % 5 if kind == "few" else octets).reshape(shape[0], -1)


@pytest.mark.parametrize("kind", ["slopes", "noise", "few"])
def test_both_engines_make_the_same_bytes(
    both_engines: tuple[ModuleType, ModuleType], rng: random.Random, kind: str
) -> None:
    for _ in range(100):
        shape = rng.randint(2, 20), rng.randint(1, 12), rng.randint(1, 5)
        rows, has_above = rows_of(rng, shape, kind), rng.random() < 0.5
        packed, again = (
            pack(engine, rows, shape[2], has_above=has_above) for engine in both_engines
        )
        assert packed == again
        for engine in both_engines:
            found = unpack(engine, packed, rows, shape[2], has_above=has_above)
            assert found is not None and same(found, rows)


def test_both_engines_agree_about_any_bytes(
    both_engines: tuple[ModuleType, ModuleType], rng: random.Random
) -> None:
    verdicts = set()
    for _ in range(3000):
        height, row_size, has_above = rng.randint(1, 3), rng.randint(1, 12), rng.random() < 0.5
        block_count = -(-height * row_size // 16)
        head = [
            rng.randint(0, 1),
            *(rng.choice((0, 1, 16, 17)) for _ in range(-(-block_count // 2))),
        ]
        packed = bytes(head) + rng.randbytes(rng.randint(0, 2 * block_count))
        like = np.zeros((height + has_above, row_size), np.uint8)
        first, second = (
            unpack(engine, packed, like, 1, has_above=has_above) for engine in both_engines
        )
        verdicts.add(first is not None)
        assert (first is None) == (second is None)
        assert first is None or second is None or np.array_equal(first, second)
    assert verdicts == {True, False}
