"""How long a tensor is expected to take: the arithmetic, and what is learned."""

from __future__ import annotations

import pytest
import torch

from comfy_cluster.cluster.forecast import (
    PART_SECONDS,
    SMALLEST_MEASURED,
    CodecSpeeds,
    Journey,
    Stage,
    Work,
    expected_seconds,
    forecast_for,
)

ENCODE_ZSTD = Stage("zstd", Work.ENCODE, is_levels=True)
DECODE_ZSTD = Stage("zstd", Work.DECODE, is_levels=True)
IMAGE = torch.zeros(SMALLEST_MEASURED // 4)
MEGABYTE = 1_000_000


def journey(*, part_count: int = 1, thread_count: int = 1, rate: float = 1e8) -> Journey:
    return Journey(
        size=4 * MEGABYTE,
        unit_count=MEGABYTE,
        is_levels=True,
        part_count=part_count,
        thread_count=thread_count,
        rate=rate,
    )


def speeds(*, encode: float, decode: float) -> CodecSpeeds:
    """Seconds for a million levels."""
    known = CodecSpeeds()
    for _ in range(150):
        known.learn(ENCODE_ZSTD, IMAGE, seconds=encode * IMAGE.numel() / MEGABYTE)
        known.learn(DECODE_ZSTD, IMAGE, seconds=decode * IMAGE.numel() / MEGABYTE)
    return known


def test_one_part_goes_through_one_stage_after_the_other() -> None:
    known = speeds(encode=0.02, decode=0.01)
    seconds = expected_seconds(journey(), "zstd", relative_size=0.1, speeds=known)
    assert seconds == pytest.approx(0.02 + 0.004 + 0.01)


def test_further_parts_cost_the_slowest_stage_each() -> None:
    known = speeds(encode=0.02, decode=0.01)
    seconds = expected_seconds(journey(part_count=10), "zstd", relative_size=0.1, speeds=known)
    assert seconds == pytest.approx(0.0034 + 9 * 0.002)
    slow_link = journey(part_count=10, rate=1e6)
    seconds = expected_seconds(slow_link, "zstd", relative_size=0.1, speeds=known)
    assert seconds == pytest.approx(0.003 + 0.04 + 9 * 0.04)


def test_threads_share_parts_and_no_more_than_there_are() -> None:
    known = speeds(encode=0.08, decode=0.0)
    four = journey(part_count=4, thread_count=4, rate=1e12)
    seconds = expected_seconds(four, "zstd", relative_size=0.1, speeds=known)
    assert seconds == pytest.approx(0.02 + 3 * 0.005, abs=1e-6)
    one = journey(part_count=1, thread_count=4, rate=1e12)
    seconds = expected_seconds(one, "zstd", relative_size=0.1, speeds=known)
    assert seconds == pytest.approx(0.08, abs=1e-6)


def test_raw_costs_the_link_alone() -> None:
    seconds = expected_seconds(journey(), "raw", relative_size=1.0, speeds=CodecSpeeds())
    assert seconds == pytest.approx(0.04)


def test_what_is_measured_replaces_the_table_slowly() -> None:
    known = CodecSpeeds()
    table = known.seconds_per_unit(ENCODE_ZSTD)
    known.learn(ENCODE_ZSTD, IMAGE, seconds=2 * table * IMAGE.numel())
    assert table < known.seconds_per_unit(ENCODE_ZSTD) < 1.5 * table
    for _ in range(50):
        known.learn(ENCODE_ZSTD, IMAGE, seconds=2 * table * IMAGE.numel())
    assert known.seconds_per_unit(ENCODE_ZSTD) == pytest.approx(2 * table, rel=0.01)


@pytest.mark.parametrize("seconds", [60.0, 0.0])
def test_one_stall_counts_little(seconds: float) -> None:
    known = CodecSpeeds()
    table = known.seconds_per_unit(ENCODE_ZSTD)
    known.learn(ENCODE_ZSTD, IMAGE, seconds=seconds)
    assert table / 2 < known.seconds_per_unit(ENCODE_ZSTD) < 2 * table


def test_what_is_not_measured_any_more_is_forgotten() -> None:
    known = CodecSpeeds()
    table = known.seconds_per_unit(ENCODE_ZSTD)
    for _ in range(50):
        known.learn(ENCODE_ZSTD, IMAGE, seconds=60.0)
    assert known.seconds_per_unit(ENCODE_ZSTD) > 1000 * table
    for _ in range(400):
        known.forget_a_little()
    assert known.seconds_per_unit(ENCODE_ZSTD) == pytest.approx(table, rel=0.01)


def test_a_slow_machine_is_taken_to_be_slow_at_all_codecs() -> None:
    known = CodecSpeeds()
    lz4 = Stage("lz4", Work.ENCODE, is_levels=False)
    before = known.seconds_per_unit(lz4)
    table = known.seconds_per_unit(ENCODE_ZSTD)
    for _ in range(50):
        known.learn(ENCODE_ZSTD, IMAGE, seconds=3 * table * IMAGE.numel())
    assert known.seconds_per_unit(lz4) == pytest.approx(3 * before, rel=0.01)


def test_small_tensors_and_raw_teach_nothing() -> None:
    known = CodecSpeeds()
    before = known.seconds_per_unit(ENCODE_ZSTD)
    known.learn(ENCODE_ZSTD, IMAGE[1:], seconds=1.0)
    known.learn(Stage("raw", Work.ENCODE, is_levels=False), IMAGE, seconds=1.0)
    assert known.seconds_per_unit(ENCODE_ZSTD) == before
    assert known.seconds_per_unit(Stage("raw", Work.DECODE, is_levels=True)) == 0.0


def test_parts_cost_messages_however_small_they_are() -> None:
    fast = journey(part_count=10, rate=1e12)
    seconds = expected_seconds(fast, "raw8", relative_size=0.25, speeds=speeds(encode=0, decode=0))
    assert seconds > 9 * PART_SECONDS


def test_the_better_of_parts_and_one_payload_is_foretold() -> None:
    known = speeds(encode=0.08, decode=0.04)
    slow = journey(part_count=4, thread_count=4, rate=1e7)
    found = forecast_for(slow, "zstd", relative_size=0.1, speeds=known)
    assert found.is_cut and found.seconds < 0.16
    quick = journey(part_count=4, thread_count=4, rate=1e12)
    quick_codec = speeds(encode=0.0005, decode=0.0002)
    assert not forecast_for(quick, "zstd", relative_size=0.1, speeds=quick_codec).is_cut
    assert not forecast_for(slow, "raw", relative_size=1.0, speeds=known).is_cut
