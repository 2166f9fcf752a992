"""What is printed at the end, and with which exit code."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from comfy_cluster.cli.comparison import Difference
from comfy_cluster.cli.main import show_report
from comfy_cluster.cli.measures import Measures
from comfy_cluster.cli.report import DemoReport

REPORT = DemoReport(
    measures=(Measures(2, 1.5, 2_000_000, 5_000_000, 4, 0.5), Measures(1, 0.75, 100, 200, 0, 0.1)),
    picture_size=(64, 48),
    cluster_seconds=2.0,
    single_seconds=3.0,
    emulated_gpu_ms=0.0,
    engine="compiled",
    differences=(),
    instances=(0, 0, 1),
    cpu_count=8,
    sheet_path="sheet.png",
)
DIFFERENCE = Difference(item=2, value_count=5, first=(1, 2, 0), actual=0.5, expected=0.25)


def printed(report: DemoReport, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    report.print(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_a_line_for_each_instance_and_fits_a_narrow_terminal() -> None:
    text = printed(REPORT)
    (leader,) = [line.split() for line in text.splitlines() if "leader 0" in line]
    assert leader == ["leader", "0", "2", "1.50", "2.0", "5.0", "4", "0.50", "14"]
    table = text.split("images of")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "received" in table
    assert "\u2026" not in table  # rich's mark for a text that was cut off


def test_the_conclusions_name_times_engine_sheet_and_verdict() -> None:
    text = printed(REPORT)
    assert "3 images of 64x48: 2.00 s on 2 instances, 3.00 s in a single process" in text
    assert "1.50 times as fast" in text
    assert "Packet engine: compiled" in text
    assert "Contact sheet: sheet.png" in text
    assert "identical, bit for bit" in text
    assert "--emulate-gpu-ms" not in text


def test_too_few_cores_are_explained() -> None:
    crowded = dataclasses.replace(REPORT, cpu_count=1)
    assert "2 instances share 1 CPU core here" in printed(crowded)
    assert "CPU core" not in printed(dataclasses.replace(crowded, emulated_gpu_ms=5.0))


def test_differences_are_named_and_not_called_identical() -> None:
    text = printed(dataclasses.replace(REPORT, differences=(DIFFERENCE,)))
    assert "THE RESULTS DIFFER in 1 of 3 images" in text
    assert "image 2 (instance 1): 5 values; the first at row 1, column 2, channel 0" in text
    assert "0.5 instead of 0.25" in text
    assert "identical" not in text


def test_many_differences_are_shortened() -> None:
    many = tuple(dataclasses.replace(DIFFERENCE, item=item) for item in range(14))
    report = dataclasses.replace(REPORT, differences=many, instances=(1,) * 14)
    text = printed(report)
    assert text.count("instead of") == 10
    assert "and 4 more" in text


def test_json_holds_every_number() -> None:
    numbers = json.loads(REPORT.to_json())
    assert numbers["identical"] is True
    assert numbers["speed_up"] == 1.5
    assert sum(each["items"] for each in numbers["instances"]) == numbers["images"] == 3
    assert numbers["instances"][0]["megabytes_per_second"] == 14.0


@pytest.mark.parametrize("is_json", [True, False])
def test_a_difference_is_exit_code_1(is_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    show_report(REPORT, is_json=is_json)
    capsys.readouterr()
    differing = dataclasses.replace(REPORT, differences=(DIFFERENCE,))
    with pytest.raises(SystemExit) as ended:
        show_report(differing, is_json=is_json)
    assert ended.value.code == 1
    output = capsys.readouterr().out
    if is_json:
        (difference,) = json.loads(output)["differences"]
        assert difference == {"image": 2, "instance": 1, "values": 5, "first": [1, 2, 0]}
    else:
        assert "DIFFER" in output
