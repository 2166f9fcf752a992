"""The demo's outcome: a value, its JSON, and its table for people. Measures nothing itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from comfy_cluster.cli.comparison import Difference
from comfy_cluster.cli.measures import Measures

SHOWN_DIFFERENCE_COUNT = 10


COLUMNS = (
    *("instance", "images", "compute s", "sent MB"),
    *("received MB", "resent chunks", "transfer s", "MB/s"),
)


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Everything that the demo found out."""

    measures: tuple[Measures, ...]
    """One an instance, in their order."""
    picture_size: tuple[int, int]
    """Width and height in pixels."""
    cluster_seconds: float
    """Fan-out, filter and fan-in together."""
    single_seconds: float
    """The same filter over all images in one process."""
    emulated_gpu_ms: float
    engine: str
    differences: tuple[Difference, ...]
    instances: tuple[int, ...]
    """By image: the instance that filtered it."""
    cpu_count: int
    sheet_path: str

    @property
    def is_identical(self) -> bool:
        return not self.differences

    @property
    def speed_up(self) -> float:
        return self.single_seconds / self.cluster_seconds

    def to_json(self) -> str:
        return json.dumps(self._json_value(), indent=2)

    def _json_value(self) -> dict[str, Any]:
        return {
            "identical": self.is_identical,
            "images": len(self.instances),
            "width": self.picture_size[0],
            "height": self.picture_size[1],
            "instance_count": len(self.measures),
            "engine": self.engine,
            "emulated_gpu_ms": self.emulated_gpu_ms,
            "cluster_seconds": self.cluster_seconds,
            "single_seconds": self.single_seconds,
            "speed_up": self.speed_up,
            "sheet": self.sheet_path,
            "instances": [
                {
                    "instance": index,
                    "items": each.items,
                    "compute_seconds": each.compute_seconds,
                    "bytes_sent": each.bytes_sent,
                    "bytes_received": each.bytes_received,
                    "chunks_retransmitted": each.chunks_retransmitted,
                    "transfer_seconds": each.transfer_seconds,
                    "megabytes_per_second": each.megabytes_per_second,
                }
                for index, each in enumerate(self.measures)
            ],
            "differences": [
                {
                    "image": each.item,
                    "instance": self.instances[each.item],
                    "values": each.value_count,
                    "first": list(each.first),
                }
                for each in self.differences
            ],
        }

    def print(self, console: Console) -> None:
        """The table, and below it what it comes to."""
        console.print(self._table())
        for line in self._conclusions():
            console.print(line, soft_wrap=True)

    def _table(self) -> RenderableType:
        table = Table(title="What each instance did", box=box.SIMPLE_HEAD)
        for heading in COLUMNS:
            table.add_column(heading.replace(" ", "\n"), justify="right")
        for index, each in enumerate(self.measures):
            table.add_row(
                "leader 0" if index == 0 else str(index),
                str(each.items),
                f"{each.compute_seconds:.2f}",
                f"{each.bytes_sent / 1e6:.1f}",
                f"{each.bytes_received / 1e6:.1f}",
                str(each.chunks_retransmitted),
                f"{each.transfer_seconds:.2f}",
                f"{each.megabytes_per_second:.0f}" if each.transfer_seconds else "-",
            )
        return table

    def _conclusions(self) -> list[Text]:
        count = len(self.measures)
        width, height = self.picture_size
        instances = _counted(count, "instance")
        lines = [
            Text(
                f"{_counted(len(self.instances), 'image')} of {width}x{height}: "
                f"{self.cluster_seconds:.2f} s on {instances}, {self.single_seconds:.2f} s in a "
                f"single process: {self.speed_up:.2f} times as fast"
            ),
            Text(f"Packet engine: {self.engine}"),
            Text(f"Contact sheet: {self.sheet_path}"),
        ]
        if count > self.cpu_count and not self.emulated_gpu_ms:
            lines.append(
                Text(
                    f"{instances} share {_counted(self.cpu_count, 'CPU core')} here, so they "
                    f"cannot be {count} times as fast. --emulate-gpu-ms 500 shows what "
                    "accelerators of their own would do.",
                    style="dim",
                )
            )
        if self.is_identical:
            return [*lines, Text("The results are identical, bit for bit", style="bold green")]
        return [*lines, *self._difference_lines()]

    def _difference_lines(self) -> list[Text]:
        total = len(self.differences)
        lines = [
            Text(
                f"THE RESULTS DIFFER in {total} of {len(self.instances)} images:", style="bold red"
            )
        ]
        for each in self.differences[:SHOWN_DIFFERENCE_COUNT]:
            row, column, channel = each.first
            lines.append(
                Text(
                    f"  image {each.item} (instance {self.instances[each.item]}): "
                    f"{each.value_count} values; the first at row {row}, column {column}, channel "
                    f"{channel}: {each.actual!r} instead of {each.expected!r}"
                )
            )
        if total > SHOWN_DIFFERENCE_COUNT:
            lines.append(Text(f"  and {total - SHOWN_DIFFERENCE_COUNT} more"))
        return lines


def _counted(count: int, word: str) -> str:
    return f"1 {word}" if count == 1 else f"{count} {word}s"
