"""The row of the codecs: what each makes of which tensor, and how long that takes to travel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfy_cluster.benchmarks.codec_links import (
    AUTO,
    codecs_to_compare,
    compare_codecs,
    link_transfers,
)
from comfy_cluster.benchmarks.forms import (
    Specimen,
    forms_table,
    other_specimens,
    photograph_specimens,
)
from comfy_cluster.benchmarks.instances import Instances
from comfy_cluster.benchmarks.results import Table
from comfy_cluster.benchmarks.session import Session
from comfy_cluster.codec.image_codecs import CODECS, available_codecs

INSTANCE_COUNT = 2
LINKS_HINT = (
    "on links of 10 Gbit/s, 1 Gbit/s and 100 Mbit/s, from a clone, as root: "
    "python -m benchmarks.netlab.codecs"
)


def codecs_row(session: Session) -> Iterator[Table]:
    side = session.options.image_side
    instances = session.instances(INSTANCE_COUNT)
    instances.close_ways()  # so that nothing else runs while codecs are measured alone
    yield _forms_table(session, instances, "8-bit photographs", photograph_specimens(side))
    yield _forms_table(session, instances, "other tensors", other_specimens(side))
    codecs = codecs_to_compare(session.options.codecs)
    transfers = link_transfers(side)
    for number, transfer in enumerate(transfers):
        table = compare_codecs(
            instances,
            transfer,
            codecs=codecs,
            link="loopback",
            rounds=session.options.rounds,
            with_shared_memory=number == 0,
            on_progress=session.on_progress,
        )
        yield table if transfer is not transfers[-1] else table.with_note(LINKS_HINT)


def _forms_table(
    session: Session, instances: Instances, title: str, specimens: Sequence[Specimen]
) -> Table:
    names = [name for name in codecs_to_compare(session.options.codecs) if name != AUTO]
    forms = {}
    for specimen in specimens:
        session.on_progress(f"{title}: {specimen.name}")
        forms[specimen] = instances.call("forms", specimen, names, session.options.rounds)[0]
    table = forms_table("codecs", f"{title}, no network", forms)
    missing = [name for name in CODECS if name not in available_codecs()]
    return table.with_note(f"not installed: {', '.join(missing)}") if missing else table
