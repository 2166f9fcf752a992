"""The rows that move a tensor while both processes are busy, and tell what is left of the speed.

Rounds with and without the load alternate. CPU times are left out: they would be the load's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from comfy_cluster.benchmarks.load import Load
from comfy_cluster.benchmarks.measure import measure_loads, open_ways
from comfy_cluster.benchmarks.results import Table, WayResult, ratios, round_notes
from comfy_cluster.benchmarks.session import Session
from comfy_cluster.benchmarks.transfers import point_to_point
from comfy_cluster.benchmarks.ways import WAYS

SIZE = 101.0  # MB


def busy_python_row(session: Session) -> Iterator[Table]:
    return _load_row(session, "busy-python", Load.PYTHON)


def busy_torch_row(session: Session) -> Iterator[Table]:
    return _load_row(session, "busy-torch", Load.TORCH)


def _load_row(session: Session, row: str, load: Load) -> Iterator[Table]:
    for megabytes in session.megabytes(SIZE):
        transfer = point_to_point(megabytes)
        title = f"{transfer.tensor_bytes / 1e6:.4g} MB with {load.value} in both processes"
        instances = session.instances(transfer.instance_count)
        names = [name for name in session.options.ways if WAYS[name].has_python]
        opened = open_ways(instances, names)
        results = measure_loads(
            instances,
            transfer,
            opened.names,
            loads=[Load.IDLE, load],
            rounds=session.options.rounds,
            on_progress=session.progress_of(title),
        )
        yield load_table(
            row,
            title,
            idle=results[Load.IDLE],
            loaded=results[load],
            ours=session.options.ours,
            missing=opened.missing,
        )


def load_table(
    row: str,
    title: str,
    *,
    idle: Sequence[WayResult],
    loaded: Sequence[WayResult],
    ours: Sequence[str],
    missing: Mapping[str, str],
) -> Table:
    """Each way with and without the load; `idle` and `loaded` are in the same order."""
    kept = {
        before.way: before.median_seconds / after.median_seconds
        for before, after in zip(idle, loaded, strict=True)
    }
    compared = ratios({each.way: each.median_seconds for each in loaded}, ours)
    lines = tuple(
        (
            before.way,
            f"{before.median_seconds * 1e3:.2f}",
            f"{after.median_seconds * 1e3:.2f}",
            f"{kept[before.way] * 100:.0f} %",
            *(
                f"{own[before.way]:.2f} x" if before.way in own else "-"
                for own in compared.values()
            ),
        )
        for before, after in zip(idle, loaded, strict=True)
    )
    values = {
        "ways": [
            {"way": before.way, "idle": before.timing(), "loaded": after.timing()}
            for before, after in zip(idle, loaded, strict=True)
        ],
        "rate_kept": kept,
        "ratios": compared,
        "missing": dict(missing),
    }
    columns = ("way", "idle ms", "loaded ms", "rate kept", *(f"{own} is" for own in compared))
    return Table(row, title, columns, lines, values, round_notes(idle, missing))
