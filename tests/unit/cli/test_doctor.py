"""How findings are printed, and the exit code."""

from __future__ import annotations

import json
import os

import pytest

from comfy_cluster.cli.doctor import print_report
from comfy_cluster.cli.main import main
from comfy_cluster.doctor.findings import Layer, Report, failure, ok


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if "COMFY_CLUSTER" in name:
            monkeypatch.delenv(name)


def exit_code_of(*arguments: str) -> object:
    try:
        main(arguments)
    except SystemExit as ended:
        return ended.code
    return 0


def test_a_line_each_with_a_sign_and_what_to_do_below(capsys: pytest.CaptureFixture[str]) -> None:
    findings = (
        ok(Layer.PORT, "UDP 0.0.0.0:9998", "can be bound"),
        failure(Layer.PROCESS, "instance 1", "nothing listens", advice=["start it", "or wait"]),
    )
    print_report(Report(findings, 4, 1))
    assert capsys.readouterr().out.splitlines() == [
        "ok port     UDP 0.0.0.0:9998: can be bound",
        "XX process  instance 1: nothing listens",
        "            -> start it",
        "            -> or wait",
        "Connected: 1/4",
    ]


def test_a_sum_when_nobody_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    findings = (failure(Layer.PORT, "UDP", "is taken", advice=["stop it"]),)
    print_report(Report(findings, 4))
    assert capsys.readouterr().out.endswith("Connected: not tried, of 4\n")


def test_exit_codes_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of("doctor") == 0
    assert "a cluster of one" in capsys.readouterr().out
    monkeypatch.setenv("COMFY_CLUSTER_CODEC", "jpeg")
    assert exit_code_of("doctor", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["findings"][0]["layer"] == "settings"
    assert "Missing required environment variable" in told["findings"][0]["text"]
    assert exit_code_of("doctor", "--seconds", "0") == 2
