"""8-bit levels in float32 memory: the contract, on both engines."""

from __future__ import annotations

import random
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest

ALL_LEVELS = np.arange(256, dtype=np.uint8)
ALL_VALUES = ALL_LEVELS.astype(np.float32) / np.float32(255)


def find(engine: ModuleType, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8] | None:
    levels = np.full(values.size, 77, np.uint8)
    return levels if engine.find_levels(values.data.cast("B"), levels) else None


def test_each_level_is_found_and_restored(engine: ModuleType) -> None:
    found = find(engine, ALL_VALUES)
    assert found is not None
    assert found.tolist() == ALL_LEVELS.tolist()
    restored = np.empty_like(ALL_VALUES)
    engine.restore_values(found, restored)
    assert restored.view(np.uint32).tolist() == ALL_VALUES.view(np.uint32).tolist()


@pytest.mark.parametrize("step", [-1, 1])
def test_no_value_one_bit_off_is_a_level(engine: ModuleType, step: int) -> None:
    for bits in (ALL_VALUES.view(np.int32).astype(np.int64) + step) % 2**32:
        value = np.array([bits], np.uint32).view(np.float32)
        assert find(engine, value) is None, value


SPECIAL_BITS = [0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x00000001, 0x3F800001]


@pytest.mark.parametrize("bits", SPECIAL_BITS)
@pytest.mark.parametrize("place", [0, 1023, 1024, 70_000, 70_002])
def test_one_special_value_among_many_is_found_out(
    engine: ModuleType, bits: int, place: int
) -> None:
    values = np.resize(ALL_VALUES, 70_003)
    values.view(np.uint32)[place] = bits
    assert find(engine, values) is None


def test_it_stops_at_the_first_block_that_holds_other_values(engine: ModuleType) -> None:
    values = np.resize(ALL_VALUES, 200_000)
    values[3] = 0.5
    levels = np.full(values.size, 77, np.uint8)
    assert not engine.find_levels(values, levels)
    assert (levels[100_000:] == 77).all()


def test_memory_need_not_be_aligned(engine: ModuleType) -> None:
    octets = bytearray(1 + ALL_VALUES.nbytes)
    memoryview(octets)[1:] = ALL_VALUES.tobytes()
    levels = bytearray(257)
    assert engine.find_levels(memoryview(octets)[1:], memoryview(levels)[1:])
    assert levels[1:] == ALL_LEVELS.tobytes()
    again = bytearray(len(octets))
    engine.restore_values(memoryview(levels)[1:], memoryview(again)[1:])
    assert again[1:] == octets[1:]


def test_the_up_filter_is_undone(engine: ModuleType, rng: random.Random) -> None:
    rows = np.frombuffer(rng.randbytes(37 * 53), np.uint8).reshape(37, 53)
    filtered = rows.copy()
    filtered[1:] -= rows[:-1]
    engine.undo_up_filter(filtered, 53)
    assert (filtered == rows).all()


@pytest.mark.parametrize("row_size", [0, -1, 4, 11])
def test_no_whole_rows_are_refused(engine: ModuleType, row_size: int) -> None:
    with pytest.raises(ValueError, match="no whole rows"):
        engine.undo_up_filter(bytearray(10), row_size)


def test_sizes_that_do_not_match_are_refused(engine: ModuleType) -> None:
    with pytest.raises(ValueError, match="15 bytes of float32 for 4 levels"):
        engine.find_levels(bytes(15), bytearray(4))
    with pytest.raises(ValueError, match="16 bytes of float32 for 5 levels"):
        engine.restore_values(bytes(5), bytearray(16))


def test_memory_that_is_not_writable_is_refused(engine: ModuleType) -> None:
    with pytest.raises(BufferError):
        engine.find_levels(bytes(16), bytes(4))
    with pytest.raises(BufferError):
        engine.restore_values(bytes(4), bytes(16))
    with pytest.raises(BufferError):
        engine.undo_up_filter(bytes(4), 2)


def test_nothing_is_nothing(engine: ModuleType) -> None:
    assert engine.find_levels(b"", bytearray())
    engine.restore_values(b"", bytearray())
    engine.undo_up_filter(bytearray(), 3)


def test_both_engines_agree_about_any_bits(
    both_engines: tuple[ModuleType, ModuleType], rng: random.Random
) -> None:
    for size in (1, 3, 17, 1025):
        data = rng.randbytes(4 * size)
        verdicts = []
        for module in both_engines:
            levels = bytearray(size)
            verdicts.append(levels if module.find_levels(data, levels) else None)
        assert verdicts[0] == verdicts[1]
