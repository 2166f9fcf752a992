"""What the user sees while the demo runs: a progress bar an instance, on standard error.

Where standard error is no terminal each stage is one plain line instead. `on_image` may be called
from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class Display:
    """Stages, each with one or several bars. One stage at a time."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, text: str, bars: Sequence[tuple[str, int]]) -> Iterator[Bars]:
        """Says `text`, and shows a bar for each (name, total) while the stage lasts."""
        self.note(text)
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        with progress:
            yield Bars(progress, [progress.add_task(name, total=total) for name, total in bars])


class Bars:
    """The bars of one stage, by position."""

    def __init__(self, progress: Progress, tasks: Sequence[TaskID]) -> None:
        self._progress = progress
        self._tasks = tasks

    def show(self, bar: int, done_count: int) -> None:
        """Thread-safe."""
        self._progress.update(self._tasks[bar], completed=done_count)
