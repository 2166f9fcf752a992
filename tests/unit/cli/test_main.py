"""The command line: help for newcomers, errors that say what to do, exit codes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import comfy_cluster
from comfy_cluster.cli.main import main


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting of ours, an empty folder, and torch's threads as they were."""
    for name in os.environ:
        if "COMFY_CLUSTER" in name:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    thread_count = torch.get_num_threads()
    yield
    torch.set_num_threads(thread_count)


def exit_code_of(*arguments: str) -> int:
    try:
        main(arguments)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
    return 0


def test_help_tells_a_newcomer_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("--help") == 0
    text = capsys.readouterr().out
    assert "comfy-cluster demo" in text
    assert "info" in text
    assert exit_code_of("demo", "--help") == 0
    assert "--emulate-gpu-ms" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("--version") == 0
    assert comfy_cluster.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["dmeo"], "No such command"),
        (["demo", "--input", "missing"], "'missing' does not exist"),
        (["demo", "--input", "."], "there is no image in"),
        (["demo", "--output", "missing/sheet.png"], "does not exist"),
        (["demo", "-n", "0"], "0 is not in the range"),
        (["demo", "--count", "9999", "--size", "8192"], "--count, --size"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(*arguments) == 2
    assert text in capsys.readouterr().err


def test_a_damaged_image_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.png").write_bytes(b"no image")
    assert exit_code_of("demo", "--input", ".") == 1
    assert "odd.png cannot be read as an image" in capsys.readouterr().err


def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFY_CLUSTER_CODEC", "jpeg")
    assert exit_code_of("demo") == 1
    assert "Error: Invalid COMFY_CLUSTER_CODEC='jpeg'" in capsys.readouterr().err
    assert exit_code_of("info") == 1
    assert "Missing required environment variable" in capsys.readouterr().err


def test_one_instance_prints_a_table_and_writes_the_sheet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code_of("demo", "-n", "1", "--count", "3", "--size", "32") == 0
    text = capsys.readouterr().out
    assert "leader 0" in text
    assert "identical, bit for bit" in text
    assert Path("sheet.png").exists()


def test_a_sheet_that_cannot_be_written_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs a file that is always full")
    arguments = ["-n", "1", "--count", "1", "--size", "32", "--output", "/dev/full"]
    assert exit_code_of("demo", *arguments) == 1
    assert "cannot be written to /dev/full" in capsys.readouterr().err


def test_info_shows_the_settings_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "INSTANCE_COUNT": "4",
        "INSTANCE_INDEX": "1",
        "ROLE": "FOLLOWER",
        "REGISTRATION_MODE": "stun",
        "STUN_SERVER": "http://registry.example:8089",
        "CLUSTER_ID": "studio",
        "KEY": "a-secret-that-nobody-sees",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"COMFY_CLUSTER_{name}", value)
    assert exit_code_of("info") == 0
    text = capsys.readouterr().out
    assert "studio" in text
    assert "FOLLOWER" in text
    assert "a-secret" not in text
    assert comfy_cluster.__version__ in text
