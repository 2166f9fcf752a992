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
    """Also beside busy processes of their own: what is lost there the cores cost, not the GIL."""
    return _load_row(session, "busy-python", [Load.PYTHON_ELSEWHERE, Load.PYTHON])


def busy_torch_row(session: Session) -> Iterator[Table]:
    return _load_row(session, "busy-torch", [Load.TORCH])


def _load_row(session: Session, row: str, loads: Sequence[Load]) -> Iterator[Table]:
    for megabytes in session.megabytes(SIZE):
        transfer = point_to_point(megabytes)
        title = f"{transfer.tensor_bytes / 1e6:.4g} MB with {loads[-1].value} in both processes"
        instances = session.instances(transfer.instance_count)
        names = [name for name in session.options.ways if WAYS[name].has_python]
        opened = open_ways(instances, names)
        results = measure_loads(
            instances,
            transfer,
            opened.names,
            loads=[Load.IDLE, *loads],
            rounds=session.options.rounds,
            on_progress=session.progress_of(title),
        )
        yield load_table(row, title, results, ours=session.options.ours, missing=opened.missing)


def load_table(
    row: str,
    title: str,
    results: Mapping[Load, Sequence[WayResult]],
    *,
    ours: Sequence[str],
    missing: Mapping[str, str],
) -> Table:
    """Each way under each load, in the order of `results`: idle first; ways in the same order.

    The rate that the last load leaves is told against each of the loads before.
    """
    loads = list(results)
    seconds = {
        each.way: {load: results[load][number].median_seconds for load in loads}
        for number, each in enumerate(results[Load.IDLE])
    }
    kept = {
        way: {load: of_way[load] / of_way[loads[-1]] for load in loads[:-1]}
        for way, of_way in seconds.items()
    }
    compared = ratios({way: of_way[loads[-1]] for way, of_way in seconds.items()}, ours)
    lines = tuple(
        (
            way,
            *(f"{of_way[load] * 1e3:.2f}" for load in loads),
            *(f"{share * 100:.0f} %" for share in kept[way].values()),
            *(f"{own[way]:.2f} x" if way in own else "-" for own in compared.values()),
        )
        for way, of_way in seconds.items()
    )
    values = {
        "ways": [
            {"way": way, **{_COLUMNS[load]: results[load][number].timing() for load in loads}}
            for number, way in enumerate(seconds)
        ],
        "rate_kept": {
            way: {_COLUMNS[load]: share for load, share in shares.items()}
            for way, shares in kept.items()
        },
        "ratios": compared,
        "missing": dict(missing),
    }
    columns = (
        "way",
        *(f"{_COLUMNS[load]} ms" for load in loads),
        *(f"of {_COLUMNS[load]}" for load in loads[:-1]),
        *(f"{own} is" for own in compared),
    )
    return Table(row, title, columns, lines, values, round_notes(results[Load.IDLE], missing))


_COLUMNS = {
    Load.IDLE: "idle",
    Load.PYTHON_ELSEWHERE: "elsewhere",
    Load.PYTHON: "loaded",
    Load.TORCH: "loaded",
}
