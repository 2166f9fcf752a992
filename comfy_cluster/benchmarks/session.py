"""What the rows of one run share: the options, the processes, and where progress goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from comfy_cluster.benchmarks.instances import Instances, loopback_sites
from comfy_cluster.benchmarks.measure import able_ways, measure, open_ways
from comfy_cluster.benchmarks.results import Table, comparison_table
from comfy_cluster.benchmarks.transfers import IMAGE_SIDE, Transfer
from comfy_cluster.benchmarks.ways import WAYS

DEFAULT_ROUNDS = 9
DEFAULT_IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """What the user asked for."""

    rounds: int = DEFAULT_ROUNDS
    megabytes: tuple[float, ...] = ()
    """Sizes of the tensor instead of a row's own."""
    instance_counts: tuple[int, ...] = ()
    """Instances of the collectives instead of a row's own."""
    ways: tuple[str, ...] = tuple(WAYS)
    message_count: int = 2000
    idle_seconds: float = DEFAULT_IDLE_SECONDS
    codecs: tuple[str, ...] = ()
    """Those of the row `codecs`, `auto` among them; none: all that work here."""
    image_side: int = IMAGE_SIDE
    """Pixels, of the images of that row."""

    @property
    def ours(self) -> list[str]:
        """The ways that others are compared with."""
        return [name for name in self.ways if WAYS[name].is_ours]


class Session:
    """Runs rows. A context manager: its end is the end of all processes."""

    def __init__(
        self,
        options: BenchmarkOptions,
        environ: Mapping[str, str],
        on_progress: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.options = options
        self._environ = environ
        self.on_progress = on_progress
        self._instances: Instances | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_instances()

    def _end_instances(self) -> None:
        instances, self._instances = self._instances, None
        if instances is not None:
            instances.kill()

    def instances(self, count: int) -> Instances:
        """`count` processes: those that there are, or, after their end, new ones."""
        if self._instances is None or len(self._instances) != count:
            self._end_instances()
            self.on_progress(f"starting {count} processes; each loads torch, which takes seconds")
            instances = Instances(loopback_sites(count), self._environ)
            self._instances = instances.__enter__()
        return self._instances

    def compare(self, row: str, title: str, transfer: Transfer) -> Table:
        """The options' ways, as far as they can do this transfer, beside each other."""
        instances = self.instances(transfer.instance_count)
        opened = open_ways(instances, able_ways(self.options.ways, transfer))
        results = measure(
            instances,
            transfer,
            opened.names,
            rounds=self.options.rounds,
            on_progress=self.progress_of(title),
        )
        return comparison_table(row, title, results, ours=self.options.ours, missing=opened.missing)

    def progress_of(self, title: str) -> Callable[[str], object]:
        """Tells progress within a table."""
        return lambda text: self.on_progress(f"{title}: {text}")

    def megabytes(self, *default: float) -> Sequence[float]:
        return self.options.megabytes or default

    def instance_counts(self, *default: int) -> Sequence[int]:
        return self.options.instance_counts or default
