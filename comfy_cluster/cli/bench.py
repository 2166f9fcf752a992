"""`comfy-cluster bench`: shows what `comfy_cluster.benchmarks` measures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from comfy_cluster.benchmarks.errors import BenchmarkError
from comfy_cluster.benchmarks.results import Table
from comfy_cluster.benchmarks.rows import ROWS
from comfy_cluster.benchmarks.run import machine, report_json, run_rows
from comfy_cluster.benchmarks.session import BenchmarkOptions
from comfy_cluster.benchmarks.ways import WAYS
from comfy_cluster.config import Codec

STANDARD_OUTPUT = "-"
WIDEST = 140  # columns; a table in a file must not be cut to a terminal's width


def list_rows() -> None:
    """Prints what can be measured, and by which ways."""
    for title, texts in (
        ("Rows", {name: row.text for name, row in ROWS.items()}),
        ("Ways", {name: way.text for name, way in WAYS.items()}),
    ):
        click.echo(f"{title}:")
        for name, text in texts.items():
            click.echo(f"  {name:16}{text}")


def checked_ways(names: Sequence[str]) -> tuple[str, ...]:
    """The named ways in the order of the tables; all when none is named."""
    for name in names:
        if name not in WAYS:
            raise click.BadParameter(
                f"there is no way {name!r}; ways: {', '.join(WAYS)}", param_hint="'--way'"
            )
    return tuple(name for name in WAYS if name in names or not names)


def checked_codecs(names: Sequence[str]) -> tuple[str, ...]:
    """The named codecs; none named: none."""
    known = [str(codec) for codec in Codec]
    for name in names:
        if name not in known:
            raise click.BadParameter(
                f"there is no codec {name!r}; codecs: {', '.join(known)}", param_hint="'--codec'"
            )
    return tuple(names)


def run_bench(
    names: Sequence[str],
    options: BenchmarkOptions,
    environ: Mapping[str, str],
    *,
    json_target: str | None,
) -> None:
    """Runs rows (none named: all), and prints each table as it comes.

    `json_target`: a file that gets all figures, or `-`: standard output, which then gets nothing
    else. BenchmarkError: see `run_rows`. click's errors: wrong names, a file that cannot be
    written.
    """
    for name in names:
        if name not in ROWS:
            raise click.BadParameter(
                f"there is no row {name!r}; rows: {', '.join(ROWS)}", param_hint="'ROW'"
            )
    if json_target not in (None, STANDARD_OUTPUT):
        _check_writable(Path(str(json_target)))
    errors = Console(stderr=True)
    output = errors if json_target == STANDARD_OUTPUT else _console()
    output.print(_head(), style="dim", highlight=False, soft_wrap=True)
    if not names:
        names = _rows_here(output)
    tables = []
    with (
        errors.status("Starting ...") as status,
        closing(run_rows(names, options, environ, on_progress=status.update)) as measured,
    ):
        for table in measured:
            tables.append(table)
            show_table(output, table)
    if json_target is not None:
        _write_json(report_json(tables, options), json_target)


def show_table(console: Console, table: Table) -> None:
    """Prints a table and its notes."""
    shown = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, heading in enumerate(table.columns):
        shown.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for line in table.lines:
        shown.add_row(*line)
    console.print(shown)
    for note in table.notes:
        console.print(f"  {note}", style="dim", highlight=False, soft_wrap=True)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDEST)


def _rows_here(console: Console) -> list[str]:
    """All rows that can run; the others are named, with the reason."""
    missing = {name: row.missing for name, row in ROWS.items() if row.missing is not None}
    for name, reason in missing.items():
        console.print(f"{name} is left out: {reason}", style="dim", highlight=False, soft_wrap=True)
    return [name for name in ROWS if name not in missing]


def _head() -> str:
    facts = machine()
    return (
        f"comfy-cluster {facts['comfy_cluster']}, {facts['engine']} engine, Python "
        f"{facts['python']}, torch {facts['torch']}, {facts['system']}, "
        f"{facts['cpu_count']} x {facts['cpu']}, {facts['date']}"
    )


def _write_json(report: Mapping[str, Any], target: str) -> None:
    text = json.dumps(report, indent=2)
    if target == STANDARD_OUTPUT:
        click.echo(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(f"the figures cannot be written to {target}: {error}") from error


def _check_writable(path: Path) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise click.BadParameter(f"{path} is no file that can be written", param_hint="'--json'")
