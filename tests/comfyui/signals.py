"""Files that tests and the test nodes of all instances share: gates, faults, counts.

So a test waits for a moment inside of a run, instead of guessing when it will be. The other side
is `pack/shared.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

FOLDER_VARIABLE = "CLUSTER_TEST_FOLDER"
WAIT_TIMEOUT = 60.0  # seconds; a bound for what hangs
_POLL_INTERVAL = 0.02  # seconds


class Signals:
    """The shared folder of one cluster, seen by the test."""

    def __init__(self, folder: Path, *, describe: Callable[[], str]) -> None:
        """`describe` tells what the instances wrote last, for the texts of failures."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._describe = describe

    def wait_until_reached(self, gate: str, instances: Collection[int]) -> None:
        """Waits until those instances are inside of a TestGate of that name."""
        self._wait_for([f"{gate}.reached.{each}" for each in instances])

    def wait_until_interrupted(self, gate: str, instances: Collection[int]) -> None:
        """Waits until those instances have left a TestGate because they were interrupted."""
        self._wait_for([f"{gate}.interrupted.{each}" for each in instances])

    def open(self, gate: str) -> None:
        """Lets everybody through, now and later."""
        (self.folder / f"{gate}.open").touch()

    def close(self, gate: str) -> None:
        """Makes the gate hold again, as if nobody had reached it."""
        for path in self.folder.glob(f"{gate}.*"):
            path.unlink()

    def break_node(self, name: str) -> None:
        """TestFail and TestCrash nodes of that name do what they are there for."""
        (self.folder / f"{name}.broken").touch()

    def mend_node(self, name: str) -> None:
        (self.folder / f"{name}.broken").unlink()

    def counts(self, name: str) -> Counter[int]:
        """How often the TestCount nodes of that name ran, by instance."""
        path = self.folder / f"{name}.count"
        lines = path.read_text(encoding="utf-8").split() if path.exists() else []
        return Counter(map(int, lines))

    def _wait_for(self, names: list[str]) -> None:
        deadline = time.monotonic() + WAIT_TIMEOUT
        while missing := [each for each in names if not (self.folder / each).exists()]:
            if time.monotonic() > deadline:
                present = sorted(path.name for path in self.folder.iterdir())
                raise TimeoutError(f"waited for {missing}; there are {present}\n{self._describe()}")
            time.sleep(_POLL_INTERVAL)
