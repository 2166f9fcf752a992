"""The row of idle cost: what a connected instance with nothing to do takes of a core."""

from __future__ import annotations

from collections.abc import Iterator

from comfy_cluster.benchmarks.measure import open_ways
from comfy_cluster.benchmarks.results import Table, missing_notes
from comfy_cluster.benchmarks.session import Session
from comfy_cluster.benchmarks.ways import WAYS

INSTANCE_COUNTS = (4,)
CALL_MARGIN = 60.0  # seconds to answer after the idle time


def idle_row(session: Session) -> Iterator[Table]:
    seconds = session.options.idle_seconds
    for count in session.instance_counts(*INSTANCE_COUNTS):
        instances = session.instances(count)
        names = [name for name in session.options.ways if WAYS[name].has_python]
        shares: dict[str, list[float]] = {}
        missing: dict[str, str] = {}
        for name in names:
            instances.close_ways()  # each by itself: it is the process that is measured
            opened = open_ways(instances, [name])
            missing |= opened.missing
            if opened.names:
                session.on_progress(f"{name}: idle for {seconds:g} s")
                shares[name] = instances.call(
                    "idle", seconds, way=name, timeout=seconds + CALL_MARGIN
                )
        instances.close_ways()
        yield Table(
            "idle",
            f"{count} connected instances with nothing to do, {seconds:g} s",
            ("way", "share of a core, each instance"),
            tuple(
                (name, ", ".join(f"{share * 100:.2f} %" for share in each))
                for name, each in shares.items()
            ),
            {
                "seconds": seconds,
                "ways": [{"way": name, "core_shares": each} for name, each in shares.items()],
                "missing": missing,
            },
            missing_notes(missing),
        )
