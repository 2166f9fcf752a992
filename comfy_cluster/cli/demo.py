"""`comfy-cluster demo`: real processes on this machine share a batch of images.

Puts the parts together: pictures, followers, leader, comparison, contact sheet. Imports torch, so
`main.py` imports this only when the demo runs.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
from rich.console import Console

from comfy_cluster import batches, fastpath
from comfy_cluster.cli import job
from comfy_cluster.cli.comparison import find_differences
from comfy_cluster.cli.display import Display
from comfy_cluster.cli.followers import Followers
from comfy_cluster.cli.images import Pictures, generate_pictures, load_pictures
from comfy_cluster.cli.instance import free_ports, instance_environ, start_timeout
from comfy_cluster.cli.leader import Leader, Outcome
from comfy_cluster.cli.report import DemoReport
from comfy_cluster.cli.sheet import make_sheet
from comfy_cluster.config import ClusterConfig
from comfy_cluster.runtime import build_cluster
from comfy_cluster.settings_parsing import PREFIX

DEFAULT_COUNT = 16
DEFAULT_SIZE = 512
ONE_INSTANCE_ENGINE = "none (one instance sends nothing)"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user asked for."""

    instance_count: int
    folder: Path | None
    """None: generated pictures."""
    count: int | None
    """Images; None: the default, or all of the folder's."""
    size: int | None
    """Side in pixels; None: the default, or as the files are."""
    seed: int
    emulate_gpu_ms: float
    sheet_path: Path


def run_demo(options: DemoOptions, environ: Mapping[str, str]) -> DemoReport:
    """Runs the demo and writes the contact sheet; the report says whether the results agree.

    Raises ClusterError when the cluster fails, and click's errors for unusable images.
    """
    torch.set_num_threads(1)  # as each follower has, or the comparison of times would be unfair
    display = Display(Console(stderr=True))
    environs = _instance_environs(options.instance_count, environ)
    config = ClusterConfig.from_env(environs[0])
    _configure_logging(config, environ)
    pictures = _pictures(options, display)
    with Followers(environs[1:]) as followers, build_cluster(config) as cluster:
        leader = Leader(cluster, followers)
        _connect(leader, display, instance_count=options.instance_count)
        outcome = _run_on_cluster(leader, options, display, images=pictures.batch)
    expected, single_seconds = _run_single(options, display, pictures.batch)
    return _report(
        options, pictures, outcome=outcome, expected=expected, single_seconds=single_seconds
    )


def _instance_environs(count: int, environ: Mapping[str, str]) -> list[dict[str, str]]:
    ports = free_ports(count)
    cluster_id = f"demo-{secrets.token_hex(4)}"  # another demo on this machine is another cluster
    return [
        instance_environ(environ, index, ports=ports, cluster_id=cluster_id)
        for index in range(count)
    ]


def _configure_logging(config: ClusterConfig, environ: Mapping[str, str]) -> None:
    """Errors only, unless the user asks for more: the demo says itself what goes on."""
    is_asked_for = environ.get(PREFIX + "LOG_LEVEL")
    level = str(config.log_level) if is_asked_for else "ERROR"
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")


def _pictures(options: DemoOptions, display: Display) -> Pictures:
    if options.folder is None:
        return generate_pictures(
            options.count or DEFAULT_COUNT, options.size or DEFAULT_SIZE, seed=options.seed
        )
    pictures = load_pictures(options.folder, count=options.count, size=options.size)
    for note in pictures.notes:
        display.note(f"Note: {note}.")
    return pictures


def _connect(leader: Leader, display: Display, *, instance_count: int) -> None:
    if instance_count == 1:
        return
    text = f"Starting {instance_count} instances here; each loads torch, which takes seconds ..."
    with display.stage(text, [("connected", instance_count)]) as bars:
        leader.wait_until_ready(partial(bars.show, 0), timeout=start_timeout(instance_count))


def _run_on_cluster(
    leader: Leader, options: DemoOptions, display: Display, *, images: torch.Tensor
) -> Outcome:
    count = options.instance_count
    sizes = batches.split_sizes(len(images), count)
    names = [(f"instance {index}", size) for index, size in enumerate(sizes)]
    text = f"All {count} instances are connected; they share {len(images)} images ..."
    if count == 1:
        text = f"One instance filters {len(images)} images ..."
    with display.stage(text, names) as bars:
        sleep_seconds = options.emulate_gpu_ms / 1000
        return leader.run(images, sleep_seconds=sleep_seconds, on_progress=bars.show)


def _run_single(
    options: DemoOptions, display: Display, images: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """The same in this process alone, and its seconds."""
    text = "The same in a single process, to compare ..."
    with display.stage(text, [("single process", len(images))]) as bars:
        started_at = time.monotonic()
        filtered = job.filter_slice(
            images,
            sleep_seconds=options.emulate_gpu_ms / 1000,
            on_image=lambda done_count: bars.show(0, done_count),
        )
        return filtered, time.monotonic() - started_at


def _report(
    options: DemoOptions,
    pictures: Pictures,
    *,
    outcome: Outcome,
    expected: torch.Tensor,
    single_seconds: float,
) -> DemoReport:
    ranges = batches.split_ranges(len(pictures.batch), options.instance_count)
    instances = tuple(index for index, items in enumerate(ranges) for _ in items)
    _write_sheet(options, pictures, filtered=outcome.filtered, instances=instances)
    _, height, width, _ = pictures.batch.shape
    engine = fastpath.ENGINE_NAME if options.instance_count > 1 else ONE_INSTANCE_ENGINE
    return DemoReport(
        measures=outcome.measures,
        picture_size=(width, height),
        cluster_seconds=outcome.seconds,
        single_seconds=single_seconds,
        emulated_gpu_ms=options.emulate_gpu_ms,
        engine=engine,
        differences=tuple(find_differences(outcome.filtered, expected)),
        instances=instances,
        cpu_count=os.cpu_count() or 1,
        sheet_path=str(options.sheet_path),
    )


def _write_sheet(
    options: DemoOptions,
    pictures: Pictures,
    *,
    filtered: torch.Tensor,
    instances: tuple[int, ...],
) -> None:
    sheet = make_sheet(
        pictures.batch,
        filtered,
        names=pictures.names,
        instances=instances,
        title=f"ComfyUI Cluster demo: {len(instances)} images before and after; "
        "the colour tells which instance filtered each",
    )
    try:
        sheet.save(options.sheet_path, format="PNG")
    except OSError as error:
        raise click.ClickException(
            f"The contact sheet cannot be written to {options.sheet_path}: "
            f"{error.strerror or error}. Choose another file with --output."
        ) from error
