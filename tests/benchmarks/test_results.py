"""Medians, shares and ratios, and what they look like in tables and JSON."""

from __future__ import annotations

import json

import pytest

from comfy_cluster.benchmarks.commands import Outcome
from comfy_cluster.benchmarks.load import Load
from comfy_cluster.benchmarks.measure import round_of
from comfy_cluster.benchmarks.results import (
    Round,
    WayResult,
    comparison_table,
    percentile,
    ratios,
)
from comfy_cluster.benchmarks.rows.loads import load_table
from comfy_cluster.benchmarks.syscalls import EVENT, parse_count
from comfy_cluster.benchmarks.transfers import Kind, Transfer


def result(way: str, *seconds: float, **more: int | bool) -> WayResult:
    """A way that moved 2 MB in these times; its sender and receiver used 1 and 3 ms of CPU."""
    rounds = tuple(Round(each, 0.001, 0.003, 0.0, 0.0002) for each in seconds)
    return WayResult(way, 2_000_000, rounds, **more)  # type: ignore[arg-type]


def test_the_median_round_counts() -> None:
    one = result("ours", 0.9, 0.002, 0.004)
    assert one.median_seconds == 0.004
    assert one.bytes_per_second == pytest.approx(5e8)
    assert result("ours", 0.002, 0.004).median_seconds == pytest.approx(0.003)


def test_cost_is_for_what_was_delivered() -> None:
    one = result("ours", 1.0, syscall_count=30, chunks_sent=200, chunks_retransmitted=3)
    assert one.cpu_seconds_per_gb == pytest.approx({"sending": 0.5, "receiving": 1.5})
    assert one.syscalls_per_mb == 15.0
    assert one.resent_share == 0.015
    other = result("gloo", 1.0)
    assert (other.syscalls_per_mb, other.resent_share) == (None, None)


def test_a_ratio_says_how_many_times_as_fast_ours_is() -> None:
    seconds = {"ours": 0.5, "ours-udp": 1.0, "gloo": 2.0}
    assert ratios(seconds, ["ours", "ours-udp"]) == {
        "ours": {"ours-udp": 2.0, "gloo": 4.0},
        "ours-udp": {"ours": 0.5, "gloo": 2.0},
    }
    assert ratios({"gloo": 1.0}, ["ours"]) == {}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 5), (0.99, 10), (0.9, 9), (0.91, 10), (0.0, 1), (1.0, 10)]
)
def test_a_percentile_is_one_of_the_values(share: float, expected: int) -> None:
    assert percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected
    assert percentile([4.0], share) == 4.0


def test_a_comparison_has_a_line_for_each_way_and_says_what_is_missing() -> None:
    results = [
        result("ours", 0.002, syscall_count=30, chunks_sent=10, chunks_retransmitted=1),
        result("gloo", 0.004),
        result("iperf3", 0.001, is_checked=False),
    ]
    missing = {"pyzmq": "pyzmq is not installed"}
    table = comparison_table("fan-in", "a title", results, ours=["ours"], missing=missing)
    assert table.columns == (
        *("way", "median ms", "GB/s", "ours is", "touch ms"),
        *("CPU s/GB", "syscalls/MB", "resent"),
    )
    assert table.lines == (
        ("ours", "2.00", "1.00", "-", "0.20", "0.50 + 1.50", "15.0", "10.00 %"),
        ("gloo", "4.00", "0.50", "2.00 x", "0.20", "0.50 + 1.50", "-", "-"),
        ("iperf3", "1.00", "2.00", "0.50 x", "-", "0.50 + 1.50", "-", "-"),
    )
    first, second, third = table.notes
    assert first == "pyzmq is left out: pyzmq is not installed"
    assert second.startswith("iperf3: moves bytes of its own")
    assert third.startswith("fewer than 7 rounds")


def test_json_has_every_round_and_the_ratios() -> None:
    table = comparison_table(
        "broadcast",
        "a title",
        [result("ours", 0.002, 0.003, 0.004), result("gloo", *[0.006] * 7)],
        ours=["ours"],
        missing={},
    )
    value = json.loads(json.dumps(table.to_json()))
    assert (value["row"], value["title"]) == ("broadcast", "a title")
    assert value["delivered_bytes"] == 2_000_000
    ours, gloo = value["ways"]
    assert ours["seconds"] == [0.002, 0.003, 0.004]
    assert ours["median_seconds"] == 0.003
    assert gloo["gigabytes_per_second"] == pytest.approx(1 / 3)
    assert gloo["cpu_seconds_per_gb"] == pytest.approx({"sending": 0.5, "receiving": 1.5})
    assert (gloo["syscalls_per_mb"], gloo["resent_share"]) == (None, None)
    assert value["ratios"] == {"ours": {"gloo": 2.0}}
    assert value["missing"] == {}


def test_a_load_table_shows_what_is_left_of_the_rate() -> None:
    table = load_table(
        "busy-python",
        "a title",
        {
            Load.IDLE: [result("ours", 0.008), result("gloo", 0.010)],
            Load.PYTHON_ELSEWHERE: [result("ours", 0.009), result("gloo", 0.020)],
            Load.PYTHON: [result("ours", 0.010), result("gloo", 0.040)],
        },
        ours=["ours"],
        missing={},
    )
    assert table.lines == (
        ("ours", "8.00", "9.00", "10.00", "80 %", "90 %", "-"),
        ("gloo", "10.00", "20.00", "40.00", "25 %", "50 %", "4.00 x"),
    )
    assert table.columns[1:6] == ("idle ms", "elsewhere ms", "loaded ms", "of idle", "of elsewhere")
    assert table.values["rate_kept"] == {
        "ours": pytest.approx({"idle": 0.8, "elsewhere": 0.9}),
        "gloo": pytest.approx({"idle": 0.25, "elsewhere": 0.5}),
    }


def test_a_round_lasts_from_the_first_call_to_the_last_arrival() -> None:
    broadcast = Transfer(Kind.BROADCAST, (8,), 3)
    outcomes = [Outcome(5.0, 99.0, 0.3), Outcome(4.0, 7.0, 0.1), Outcome(4.5, 8.0, 0.2)]
    measured = round_of(broadcast, outcomes)
    assert measured.seconds == 3.0
    assert measured.sending_cpu == pytest.approx(0.3)
    assert measured.receiving_cpu == pytest.approx(0.3)
    assert measured.both_cpu == 0.0
    all_gather = Transfer(Kind.ALL_GATHER, (8,), 3)
    measured = round_of(all_gather, outcomes)
    assert measured.seconds == 95.0
    assert (measured.sending_cpu, measured.receiving_cpu) == (0.0, 0.0)
    assert measured.both_cpu == pytest.approx(0.6)


def test_what_a_way_measured_itself_counts() -> None:
    outcomes = [Outcome(5.0, 6.0, 0.0, own_seconds=0.2), Outcome(5.0, 7.0, 0.0, own_seconds=0.25)]
    assert round_of(Transfer(Kind.POINT_TO_POINT, (8,)), outcomes).seconds == 0.25


@pytest.mark.parametrize(
    ("output", "count"),
    [
        (f"Events disabled\n1483,,{EVENT},206267366,100.00,,\n", 1483),
        (f"<not counted>,,{EVENT},0,100.00,,\n", None),
        ("Error: no permission\n", None),
    ],
)
def test_what_perf_writes_is_understood(output: str, count: int | None) -> None:
    assert parse_count(output) == count
