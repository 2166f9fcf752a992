"""`comfy-cluster bench`: names, options, and where the figures go. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_cluster.benchmarks.results import Table
from comfy_cluster.benchmarks.rows import ROWS, Row
from comfy_cluster.benchmarks.session import BenchmarkOptions, Session
from comfy_cluster.benchmarks.ways import WAYS
from comfy_cluster.cli.main import main

seen: list[BenchmarkOptions] = []


def known_row(session: Session) -> Iterator[Table]:
    """A row with known figures."""
    seen.append(session.options)
    yield Table("known", "a title", ("way", "ms"), (("ours", "1.00"),), {"figure": 1}, ("a note",))


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("known", "for this test", "moves", "known_row")
    monkeypatch.setitem(ROWS, "known", row)
    monkeypatch.setattr("comfy_cluster.benchmarks.rows.moves.known_row", known_row, raising=False)
    seen.clear()


def exit_code_of(*arguments: str) -> int:
    try:
        main(["bench", *arguments])
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
    return 0


def test_the_list_names_every_row_and_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("--list") == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in (*ROWS, *WAYS))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["point-to-pont"], "there is no row 'point-to-pont'; rows: point-to-point"),
        (["--way", "carrier-pigeon"], "there is no way 'carrier-pigeon'; ways: ours"),
        (["--codec", "gif"], "there is no codec 'gif'; codecs: auto"),
        (["--rounds", "0"], "--rounds"),
        (["--megabytes", "0"], "--megabytes"),
        (["-n", "1"], "--instances"),
        (["--json", "missing/figures.json"], "no file that can be written"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(*arguments) == 2
    assert text in capsys.readouterr().err
    assert seen == []


def test_a_table_is_shown_with_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("known", "--rounds", "3", "--way", "tcp", "--way", "ours") == 0
    text = capsys.readouterr().out
    assert all(part in text for part in ("a title", "ours", "1.00", "a note", "engine"))
    assert seen == [BenchmarkOptions(rounds=3, ways=("ours", "tcp"))]


def test_json_on_standard_output_is_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("known", "--json", "-") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["rounds"] == 9
    assert report["tables"] == [
        {"row": "known", "title": "a title", "figure": 1, "notes": ["a note"]}
    ]
    assert report["machine"].keys() >= {"date", "engine", "cpu", "cpu_count", "torch", "pyzmq"}
    assert "a title" in captured.err


def test_json_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "figures.json"
    assert exit_code_of("known", "--json", str(target)) == 0
    assert json.loads(target.read_text())["tables"][0]["figure"] == 1
    assert "a title" in capsys.readouterr().out


def test_a_file_that_is_full_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs a file that is always full")
    assert exit_code_of("known", "--json", "/dev/full") == 1
    assert "cannot be written to /dev/full" in capsys.readouterr().err


def test_without_torch_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert exit_code_of("known") == 1
    assert "torch is not installed: pip install torch" in capsys.readouterr().err


def test_a_row_that_lacks_a_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row("known", "for this test", "moves", "known_row", needs=("no_such_package", "no-such"))
    monkeypatch.setitem(ROWS, "known", row)
    assert exit_code_of("known") == 1
    assert "Error: known: no-such is not installed: pip install no-such" in capsys.readouterr().err
    assert seen == []


def test_without_names_a_row_that_lacks_a_package_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = Row("lacking", "for this test", "moves", "known_row", needs=("no_such_package", "no"))
    rows = {"known": ROWS["known"], "lacking": lacking}
    for name in list(ROWS):
        monkeypatch.delitem(ROWS, name)
    for name, row in rows.items():
        monkeypatch.setitem(ROWS, name, row)
    assert exit_code_of() == 0
    text = capsys.readouterr().out
    assert "lacking is left out: no is not installed: pip install no" in text
    assert "a title" in text
    assert len(seen) == 1


def test_codecs_are_an_option() -> None:
    assert exit_code_of("known", "--codec", "raw", "--codec", "auto") == 0
    assert seen[0].codecs == ("raw", "auto")


def test_sizes_that_do_not_fit_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing_row(session: Session) -> Iterator[Table]:
        yield from ()
        raise ValueError("7 items cannot be shared evenly by 2 instances")

    monkeypatch.setattr("comfy_cluster.benchmarks.rows.moves.known_row", failing_row)
    assert exit_code_of("known") == 1
    assert "Error: known: 7 items cannot be shared" in capsys.readouterr().err
