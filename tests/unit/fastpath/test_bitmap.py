"""The two sets of small integers, against Python's own set."""

from __future__ import annotations

import random
from types import ModuleType

import pytest


def ranges_of(missing: set[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for index in sorted(missing):
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return ranges


@pytest.mark.parametrize("chunk_count", [0, 1, 2, 63, 64, 65, 127, 128, 1000])
def test_chunk_bitmap_behaves_as_a_set(engine: ModuleType, chunk_count: int) -> None:
    rng = random.Random(chunk_count)
    bitmap, model = engine.ChunkBitmap(chunk_count), set()
    order = list(range(chunk_count)) * 2
    rng.shuffle(order)
    for index in order:
        assert bitmap.add(index) == (index not in model)
        model.add(index)
        assert index in bitmap
        assert bitmap.count == len(model)
        assert bitmap.is_complete == (len(model) == chunk_count)
        if rng.random() < 0.1:
            missing = set(range(chunk_count)) - model
            assert bitmap.first_missing() == min(missing, default=chunk_count)
            assert bitmap.missing_ranges(1000) == ranges_of(missing)
            assert bitmap.missing_ranges(2) == ranges_of(missing)[:2]
    assert bitmap.is_complete
    assert bitmap.chunk_count == chunk_count
    assert bitmap.first_missing() == chunk_count
    assert bitmap.missing_ranges(10) == []


@pytest.mark.parametrize("index", [-1, 10, 63, 64, 2**31, 2**32 - 1])
def test_chunk_bitmap_refuses_what_is_out_of_range(engine: ModuleType, index: int) -> None:
    bitmap = engine.ChunkBitmap(10)
    assert bitmap.add(index) is False
    assert index not in bitmap
    assert bitmap.count == 0


def test_missing_ranges_of_nothing_received(engine: ModuleType) -> None:
    assert engine.ChunkBitmap(130).missing_ranges(5) == [(0, 130)]
    assert engine.ChunkBitmap(130).missing_ranges(0) == []


@pytest.mark.parametrize("chunk_count", [-1, 2**32])
def test_chunk_bitmap_refuses_counts_that_do_not_fit(engine: ModuleType, chunk_count: int) -> None:
    with pytest.raises(ValueError, match="chunk_count"):
        engine.ChunkBitmap(chunk_count)


def received_by(words: list[int], largest: int) -> set[int]:
    first = 64 * (largest // 64 - len(words) + 1)
    return {first + 64 * n + i for n, word in enumerate(words) for i in range(64) if word >> i & 1}


@pytest.mark.parametrize("seed", range(8))
def test_history_refuses_replays_and_reports_what_came(engine: ModuleType, seed: int) -> None:
    """Against a set, over jumps, late packets and repeats; SACKs taken in between."""
    rng = random.Random(seed)
    history, model, largest = engine.ReceiveHistory(), set(), -1
    assert history.largest == -1
    for _ in range(600):
        jump = rng.choice([1, 1, 1, 2, 5, 64, 700]) if rng.random() < 0.7 else 0
        counter = largest + jump if jump else max(0, largest - int(9000 * rng.random() ** 3))
        is_remembered = counter // 64 + engine.SACK_MAX_WORDS > largest // 64
        is_new = counter > largest or (is_remembered and counter not in model)
        assert history.is_new(counter) == is_new
        if not is_new:
            continue
        history.add(counter)
        model.add(counter)
        largest = max(largest, counter)
        assert history.largest == largest
        assert not history.is_new(counter)
        if rng.random() < 0.3:
            words = history.sack_words()
            assert 1 <= len(words) <= engine.SACK_MAX_WORDS
            first = 64 * (largest // 64 - len(words) + 1)
            assert received_by(words, largest) == {c for c in model if c >= max(first, 0)}
            assert counter in received_by(words, largest)


def test_each_arrival_is_reported_in_eight_sacks(engine: ModuleType) -> None:
    """SACKs are lost too: one that arrives makes up for seven that did not."""
    history = engine.ReceiveHistory()
    history.add(0)
    reports = 0
    for number in range(1, 12):
        reports += 0 in received_by(history.sack_words(), history.largest)
        history.add(64 * number)
    assert reports == 8


def test_history_forgets_after_its_window(engine: ModuleType) -> None:
    history = engine.ReceiveHistory()
    history.add(0)
    history.add(engine.HISTORY_WINDOW - 1)
    assert history.is_new(1)
    history.add(engine.HISTORY_WINDOW)
    assert not history.is_new(1)
    assert history.is_new(64)


def test_history_survives_a_jump_over_everything(engine: ModuleType) -> None:
    history = engine.ReceiveHistory()
    for counter in range(200):
        history.add(counter)
    history.add(2**62)
    assert history.largest == 2**62
    assert received_by(history.sack_words(), 2**62) == {2**62}
    assert not history.is_new(199)
