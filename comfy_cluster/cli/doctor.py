"""`comfy-cluster doctor`: prints what the doctor found, for people or for programs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import click

from comfy_cluster.doctor.findings import Finding, Report, State, settings_failure
from comfy_cluster.errors import ConfigError

_SIGNS = {State.OK: ("ok", "green"), State.WARNING: ("!!", "yellow"), State.FAILURE: ("XX", "red")}


def run_doctor(environ: Mapping[str, str], *, seconds: float, is_json: bool) -> Report:
    """Examines and prints."""
    # What the layers below log is found and told in other words.
    logging.getLogger("comfy_cluster").addHandler(logging.NullHandler())
    report = _examine(environ, seconds)
    if is_json:
        click.echo(report.to_json())
    else:
        print_report(report)
    return report


def _examine(environ: Mapping[str, str], seconds: float) -> Report:
    try:
        from comfy_cluster.doctor.examination import examine

        return examine(environ, seconds=seconds, note=lambda text: click.echo(text, err=True))
    except ConfigError as error:  # of the packet engine, which is chosen when it is imported
        return Report((settings_failure(error),))


def print_report(report: Report) -> None:
    """A line for each finding, what to do below it, and the sum."""
    width = max(len(each.layer.value) for each in report.findings)
    for finding in report.findings:
        _print_finding(finding, width)
    click.echo(_summary(report))


def _print_finding(finding: Finding, width: int) -> None:
    sign, colour = _SIGNS[finding.state]
    about = "" if finding.subject in finding.text else f"{finding.subject}: "
    layer = finding.layer.value.ljust(width)
    click.echo(f"{click.style(sign, fg=colour, bold=True)} {layer}  {about}{finding.text}")
    for step in finding.advice.splitlines():
        click.echo(f"   {' ' * width}  -> {step}")


def _summary(report: Report) -> str:
    if not report.instance_count:
        return "Connected: nobody knows, the settings are wrong"
    if report.connected_count is None:
        return f"Connected: not tried, of {report.instance_count}"
    return f"Connected: {report.connected_count}/{report.instance_count}"
