"""Our codecs beside each other, from tensor to tensor over one link, and whether `auto` is right.

For rows, and for the link lab: the link is where the instances are.

How it works. Each codec is a way of its own, a pair of clusters that knows no other codec; shared
memory is off. They take turns, so that noise of the machine hits all alike. What `auto` goes by,
the path's rate and the speed of codecs here, it learns from its own transfers: so each way has some
rounds before those that count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_cluster.benchmarks.forms import LATENT_CHANNELS, LATENT_SCALE
from comfy_cluster.benchmarks.instances import Instances
from comfy_cluster.benchmarks.measure import measure, open_ways
from comfy_cluster.benchmarks.results import UNKNOWN, Table, WayResult, missing_notes, round_notes
from comfy_cluster.benchmarks.transfers import Content, Kind, Transfer
from comfy_cluster.benchmarks.ways import codec_way
from comfy_cluster.codec.image_codecs import available_codecs

AUTO, RAW = "auto", "raw"
SHARED_MEMORY_WAY = "ours"  # what instances on one machine have without any setting
WARM_UPS = 5  # rounds; the last few decide what is known of path and codecs
BATCH_SIZE = 8
COUNTER_PREFIX = "codec_"


@dataclass(frozen=True, slots=True)
class Entry:
    """One codec, or shared memory, in the table of one transfer."""

    name: str
    result: WayResult
    batch_size: int
    tensor_size: int
    """Bytes."""

    @property
    def seconds(self) -> float:
        """Median, for one item of the batch."""
        return self.result.median_seconds / self.batch_size

    @property
    def least_seconds(self) -> float:
        """For one item, in the fastest round: the least that the machine's noise has hit."""
        return min(each.seconds for each in self.result.rounds) / self.batch_size

    @property
    def cpu_seconds(self) -> float:
        """Median of both processes together, for one item."""
        rounds = self.result.rounds
        return statistics.median(e.sending_cpu + e.receiving_cpu for e in rounds) / self.batch_size

    @property
    def sent_size(self) -> float:
        """Bytes that left by UDP or shared memory in one transfer."""
        counted = self.result.counted
        sent = counted.get("bytes_sent", 0) + counted.get("shared_bytes_sent", 0)
        return sent / len(self.result.rounds)

    @property
    def is_smaller(self) -> bool:
        """False too where the codec has no form for the tensor, which then goes raw."""
        return self.sent_size < self.tensor_size

    @property
    def chosen(self) -> dict[str, int]:
        """How many tensors were sent by which codec."""
        return {
            name.removeprefix(COUNTER_PREFIX): count
            for name, count in self.result.counted.items()
            if name.startswith(COUNTER_PREFIX) and count
        }


def codecs_to_compare(wanted: Sequence[str]) -> list[str]:
    """`auto` and the codecs that work here, as far as they are wanted (none named: all)."""
    return [name for name in (*available_codecs(), AUTO) if name in wanted or not wanted]


def link_transfers(side: int, *, batch_size: int = BATCH_SIZE) -> list[Transfer]:
    """What is sent, from the follower to the leader: images `side` pixels wide, and a latent."""
    latent = (1, LATENT_CHANNELS, side // LATENT_SCALE, side // LATENT_SCALE)
    return [
        Transfer(Kind.POINT_TO_POINT, shape, source=1, content=content)
        for content, shape in (
            (Content.PHOTOGRAPH, (1, side, side, 3)),
            (Content.PHOTOGRAPH, (batch_size, side, side, 3)),
            (Content.NOISY_PHOTOGRAPH, (1, side, side, 3)),
            (Content.SMOOTH_LATENT, latent),
        )
    ]


def compare_codecs(
    instances: Instances,
    transfer: Transfer,
    *,
    codecs: Sequence[str],
    link: str,
    rounds: int,
    with_shared_memory: bool = False,
    on_progress: Callable[[str], object] = lambda _: None,
) -> Table:
    """One transfer by each codec of `codecs`, on a link that is called `link` in the title.

    BenchmarkError: see `measure`.
    """
    names = {codec_way(codec): codec for codec in codecs}
    if with_shared_memory:
        names[SHARED_MEMORY_WAY] = "shared memory"
    title = f"{transfer.content.value} [{','.join(map(str, transfer.shape))}], {link}"
    opened = open_ways(instances, list(names))
    results = measure(
        instances,
        transfer,
        opened.names,
        rounds=rounds,
        warm_ups=WARM_UPS,
        on_progress=lambda text: on_progress(f"{title}: {text}"),
    )
    batch_size, size = transfer.shape[0], transfer.tensor_bytes
    entries = [Entry(names[each.way], each, batch_size, size) for each in results]
    return link_table(title, link, transfer, entries, missing=opened.missing)


def link_table(
    title: str,
    link: str,
    transfer: Transfer,
    entries: Sequence[Entry],
    *,
    missing: Mapping[str, str],
) -> Table:
    """The entries beside the best codec, and beside raw."""
    fixed = {e.name: e for e in entries if e.result.way != SHARED_MEMORY_WAY and e.name != AUTO}
    best = min(fixed, key=lambda name: fixed[name].seconds, default=None)
    to_best = {} if best is None else {e.name: e.seconds / fixed[best].seconds for e in entries}
    to_raw = {e.name: fixed[RAW].seconds / e.seconds for e in entries} if RAW in fixed else {}
    least = _auto_to_best_least(entries, fixed)
    notes = [*missing_notes(missing), *round_notes([each.result for each in entries], {})]
    if AUTO in to_best:
        notes.insert(0, _auto_text(to_best[AUTO], str(best), least))
    columns = ("codec", "ms an item", "least", "CPU", "to the best", "raw takes", "MB", "chosen")
    return Table(
        "codecs",
        title,
        columns,
        tuple(_line(each, to_best, to_raw) for each in entries),
        {
            "link": link,
            "content": transfer.content.value,
            "shape": list(transfer.shape),
            "tensor_bytes": transfer.tensor_bytes,
            "best": best,
            "auto_to_best": to_best.get(AUTO),
            "auto_to_best_least": least,
            "codecs": [_json(each, to_best, to_raw) for each in entries],
            "missing": dict(missing),
        },
        tuple(notes),
    )


def _auto_to_best_least(entries: Sequence[Entry], fixed: Mapping[str, Entry]) -> float | None:
    """The same by the fastest round of each."""
    auto = next((each for each in entries if each.name == AUTO), None)
    if auto is None or not fixed:
        return None
    return auto.least_seconds / min(each.least_seconds for each in fixed.values())


def _auto_text(ratio: float, best: str, least: float | None) -> str:
    text = f"auto takes {ratio:.2f} times as long as the best, {best}"
    return text if least is None else f"{text}; by the fastest round of each {least:.2f} times"


def _line(
    entry: Entry, to_best: Mapping[str, float], to_raw: Mapping[str, float]
) -> tuple[str, ...]:
    return (
        entry.name,
        f"{entry.seconds * 1e3:.2f}",
        f"{entry.least_seconds * 1e3:.2f}",
        f"{entry.cpu_seconds * 1e3:.2f}",
        f"{to_best[entry.name]:.2f} x" if entry.name in to_best else UNKNOWN,
        f"{to_raw[entry.name]:.2f} x" if entry.name in to_raw else UNKNOWN,
        f"{entry.sent_size / 1e6:.2f}",
        _chosen_text(entry),
    )


def _chosen_text(entry: Entry) -> str:
    text = ", ".join(f"{name} {count}x" for name, count in entry.chosen.items())
    return text if entry.is_smaller or RAW in entry.chosen else f"{text}, no smaller"


def _json(
    entry: Entry, to_best: Mapping[str, float], to_raw: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "codec": entry.name,
        **entry.result.timing(),
        "seconds_per_item": entry.seconds,
        "least_seconds_per_item": entry.least_seconds,
        "cpu_seconds_per_item": entry.cpu_seconds,
        "to_best": to_best.get(entry.name),
        "raw_to_this": to_raw.get(entry.name),
        "sent_bytes": entry.sent_size,
        "chosen": entry.chosen,
        "is_checked": entry.result.is_checked,
    }
