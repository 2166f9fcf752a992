"""The rows by name: each is one question, and gives one table or more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_cluster.benchmarks.results import Table
    from comfy_cluster.benchmarks.session import Session


@dataclass(frozen=True, slots=True)
class Row:
    """One question."""

    name: str
    text: str
    """What it measures, for the list of rows."""
    module: str
    function: str
    needs: tuple[str, str] | None = None
    """A package that it cannot do without: what is imported, and what is installed."""

    @property
    def missing(self) -> str | None:
        """Why it cannot run here, and what to do about it; None: it can."""
        if self.needs is None or find_spec(self.needs[0]) is not None:
            return None
        return f"{self.needs[1]} is not installed: pip install {self.needs[1]}, and run this again"

    def run(self, session: Session) -> Iterator[Table]:
        """Measures; each table as soon as it is complete."""
        function: Callable[[Session], Iterator[Table]] = getattr(
            import_module(f"{__name__}.{self.module}"), self.function
        )
        return function(session)


ROWS = {
    row.name: row
    for row in (
        Row(
            "point-to-point",
            "one float32 tensor from process to process: 1, 13, 101, 403 MB",
            "moves",
            "point_to_point_row",
        ),
        Row("fan-out", "[32,1024,1024,3] cut and sent to 4 instances", "moves", "fan_out_row"),
        Row("fan-in", "[32,1024,1024,3] joined from 4 instances", "moves", "fan_in_row"),
        Row("broadcast", "[32,1024,1024,3] to 4 instances", "moves", "broadcast_row"),
        Row(
            "all-gather",
            "two images of each of 2, 4 and 8 instances to all",
            "moves",
            "all_gather_row",
        ),
        Row("image", "an 8-bit image 1024x1024 from follower to leader", "moves", "image_row"),
        Row(
            "busy-python",
            "101 MB with a busy pure-Python thread in both processes, beside idle ones",
            "loads",
            "busy_python_row",
        ),
        Row(
            "busy-torch",
            "101 MB with torch on all cores in both processes, beside idle ones",
            "loads",
            "busy_torch_row",
        ),
        Row("messages", "small messages there and back, and in a row", "messages", "messages_row"),
        Row(
            "codecs",
            "each codec: size, speed, exactness; and end to end, beside auto",
            "codecs",
            "codecs_row",
            needs=("skimage", "scikit-image"),
        ),
        Row("idle", "what connected instances with nothing to do cost", "idle", "idle_row"),
    )
}
