"""The `comfy-cluster` command: its options, help and exit codes.

Exit codes: 0 done; 1 it failed, or results differ; 2 wrong usage; 130 interrupted by Ctrl+C.
torch takes seconds to load, so each subcommand imports what it needs only when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from comfy_cluster import __version__
from comfy_cluster.errors import ClusterError
from stun_server.commands import stun

if TYPE_CHECKING:
    from comfy_cluster.cli.report import DemoReport

INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells have it

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Ends the process with one of the exit codes above.

    `arguments`: those of the command line, by default.
    """
    try:
        cli.main(arguments, prog_name="comfy-cluster", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ClusterError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; every instance was ended.", err=True)
        # At once: with torch loaded the interpreter takes a second or more to take itself apart.
        os._exit(INTERRUPTED_EXIT_CODE)


@click.group(context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, prog_name="comfy-cluster")
def cli() -> None:
    """Several ComfyUI processes that work as one.

    \b
    To see it work on this machine, without ComfyUI and without a GPU:
        comfy-cluster demo
    To see how fast it is on this machine, beside what else one could use:
        comfy-cluster bench
    To see how your COMFY_CLUSTER_* variables are understood:
        comfy-cluster info
    To see who is connected to the ComfyUI of this machine:
        comfy-cluster status
    To find out why instances do not connect:
        comfy-cluster doctor
    To run the server where instances find each other over the internet:
        comfy-cluster stun serve
    """


cli.add_command(stun)


@cli.command()
@click.option(
    "-n",
    "--instances",
    "instance_count",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Instances to start: the leader and its followers, a process each.",
)
@click.option(
    "--input",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with images to use.  [default: generated pictures]",
)
@click.option(
    "--count",
    type=click.IntRange(1, 10_000),
    help="How many images.  [default: 16, or all of the folder]",
)
@click.option(
    "--size",
    type=click.IntRange(16, 8192),
    help="Side of the square images in pixels.  [default: 512, or as the files are]",
)
@click.option("--seed", default=0, show_default=True, help="Other generated pictures.")
@click.option(
    "--emulate-gpu-ms",
    type=click.FloatRange(0, 600_000),
    default=0,
    show_default=True,
    help="Sleep this many milliseconds for each image, to stand for the work of an accelerator.",
)
@click.option(
    "--output",
    "sheet_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default=Path("sheet.png"),
    show_default=True,
    help="File for the contact sheet, a PNG.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the numbers as JSON, and no table.")
def demo(
    instance_count: int,
    folder: Path | None,
    count: int | None,
    size: int | None,
    seed: int,
    emulate_gpu_ms: float,
    sheet_path: Path,
    is_json: bool,
) -> None:
    """Share a batch of images between several instances on this machine.

    The leader fans the images out, every instance filters its slice, the leader fans the results
    in, and compares them bit by bit with those of a single process. Exit code 1 if they differ.
    """
    if not sheet_path.absolute().parent.is_dir():
        raise click.BadParameter(
            f"the folder {sheet_path.absolute().parent} does not exist", param_hint="'--output'"
        )
    from rich.console import Console

    with Console(stderr=True).status("Loading torch ..."):
        from comfy_cluster.cli.demo import DemoOptions, run_demo

    options = DemoOptions(
        instance_count=instance_count,
        folder=folder,
        count=count,
        size=size,
        seed=seed,
        emulate_gpu_ms=emulate_gpu_ms,
        sheet_path=sheet_path,
    )
    show_report(run_demo(options, os.environ), is_json=is_json)


def show_report(report: DemoReport, *, is_json: bool) -> None:
    """Prints it; SystemExit with code 1 if the results differ."""
    from rich.console import Console

    if is_json:
        click.echo(report.to_json())
    else:
        report.print(Console())
    if not report.is_identical:
        sys.exit(1)


@cli.command()
@click.argument("rows", metavar="[ROW]...", nargs=-1)
@click.option("--list", "is_list", is_flag=True, help="List the rows and the ways, and stop.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=9,
    show_default=True,
    help="Rounds of each way; their median counts. Below 7 it is a first look only.",
)
@click.option(
    "--megabytes",
    type=click.FloatRange(0.001, 100_000),
    multiple=True,
    help="Size of the tensor, instead of the row's own sizes. May be repeated.",
)
@click.option(
    "-n",
    "--instances",
    "instance_counts",
    type=click.IntRange(2, 64),
    multiple=True,
    help="Instances of a collective, instead of the row's own numbers. May be repeated.",
)
@click.option(
    "--way",
    "ways",
    multiple=True,
    help="Compare these ways only (see --list).  [default: all]",
)
@click.option(
    "--codec",
    "codecs",
    multiple=True,
    help="Compare these codecs only in the row `codecs`; auto is one.  [default: all]",
)
@click.option(
    "--seconds",
    "idle_seconds",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    help="How long the row `idle` looks at each way.",
)
@click.option(
    "--json",
    "json_target",
    metavar="FILE",
    help="Write all figures to this file; - for standard output, and the tables then go to stderr.",
)
def bench(
    rows: tuple[str, ...],
    is_list: bool,
    rounds: int,
    megabytes: tuple[float, ...],
    instance_counts: tuple[int, ...],
    ways: tuple[str, ...],
    codecs: tuple[str, ...],
    idle_seconds: float,
    json_target: str | None,
) -> None:
    """Measure this project beside gloo, pyzmq, TCP and others, on this machine.

    Each ROW is a question (all of them by default, which takes some minutes). Every way of moving
    bytes runs in the same processes on the same bytes, in turn, and each result is checked.
    """
    from comfy_cluster.benchmarks.session import BenchmarkOptions
    from comfy_cluster.cli import bench as command

    if is_list:
        command.list_rows()
        return
    options = BenchmarkOptions(
        rounds=rounds,
        megabytes=megabytes,
        instance_counts=instance_counts,
        ways=command.checked_ways(ways),
        idle_seconds=idle_seconds,
        codecs=command.checked_codecs(codecs),
    )
    command.run_bench(rows, options, os.environ, json_target=json_target)


@cli.command()
@click.option("--url", help="Of the ComfyUI to ask.  [default: the one of this machine]")
@click.option("--json", "is_json", is_flag=True, help="Print it as JSON, and no table.")
def status(url: str | None, is_json: bool) -> None:
    """Show what a running ComfyUI knows of its cluster: who is connected, and why others are not.

    Exit code 1 if nobody answers.
    """
    from rich.console import Console

    from comfy_cluster.cli import status as command

    url = url or command.default_url(os.environ)
    text = command.ask(url)
    if is_json:
        click.echo(text)
    else:
        command.print_status(Console(), command.parse(text, url))


@cli.command()
def info() -> None:
    """Show version, packet engine and settings of this environment."""
    from rich.console import Console

    from comfy_cluster.cli.environment import print_environment

    print_environment(Console(), os.environ)


@cli.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0.5, 600),
    default=5.0,
    show_default=True,
    help="How long to look for the others; it ends earlier when all is well.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the findings as JSON.")
def doctor(seconds: float, is_json: bool) -> None:
    """Find out what keeps the instances from connecting.

    Checks the settings of this environment, names, ports, buffers and servers. Then looks for the
    others from this instance's place for some seconds, and takes no part in what they do: so stop
    ComfyUI here first, and leave the others running. Names the layer that fails and what to do.
    Exit code 1 if something fails.
    """
    from comfy_cluster.cli.doctor import run_doctor

    if run_doctor(os.environ, seconds=seconds, is_json=is_json).has_failed:
        sys.exit(1)
