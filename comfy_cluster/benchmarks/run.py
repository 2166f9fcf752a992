"""Runs rows and collects what they find: the entry for the command line.

Imports no torch: only the instances need it, and its threads would take from what is measured.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import platform
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from comfy_cluster import __version__, fastpath
from comfy_cluster.benchmarks.errors import BenchmarkError
from comfy_cluster.benchmarks.results import Table
from comfy_cluster.benchmarks.rows import ROWS
from comfy_cluster.benchmarks.session import BenchmarkOptions, Session

PACKAGES = ("torch", "pyzmq", "numpy", "numcodecs", "pillow")


def run_rows(
    names: Sequence[str],
    options: BenchmarkOptions,
    environ: Mapping[str, str],
    *,
    on_progress: Callable[[str], object] = lambda _: None,
) -> Generator[Table, None, None]:
    """Measures rows one after the other; each table as soon as it is complete.

    BenchmarkError: a name is no row, what it needs is missing, or an instance failed. Whatever
    happens, and also when the iterator is closed early, no process is left.
    """
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise BenchmarkError(f"there is no row {unknown[0]!r}: take some of {', '.join(ROWS)}")
    if importlib.util.find_spec("torch") is None:
        raise BenchmarkError("torch is not installed: pip install torch, and run this again")
    for name in names:
        if (reason := ROWS[name].missing) is not None:
            raise BenchmarkError(f"{name}: {reason}")
    with Session(options, environ, on_progress) as session:
        for name in names:
            yield from _run_row(name, session)


def _run_row(name: str, session: Session) -> Iterator[Table]:
    try:
        yield from ROWS[name].run(session)
    except ValueError as error:  # sizes and instances that do not go together
        raise BenchmarkError(f"{name}: {error}") from error


def machine() -> dict[str, Any]:
    """What the figures depend on, for the head of a report."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "comfy_cluster": __version__,
        "engine": fastpath.ENGINE_NAME,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        **{name: _version_of(name) for name in PACKAGES},
    }


def report_json(tables: Sequence[Table], options: BenchmarkOptions) -> dict[str, Any]:
    """The whole run, as values."""
    return {
        "machine": machine(),
        "rounds": options.rounds,
        "tables": [table.to_json() for table in tables],
    }


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
