"""What the test nodes share with the tests: files in one folder (see `signals.py` there)."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import comfy.model_management

_POLL_INTERVAL = 0.02  # seconds


def instance_index() -> int:
    """Of this process; 0 without a cluster."""
    return int(os.environ.get("COMFY_CLUSTER_INSTANCE_INDEX", "0"))


def shared_file(name: str) -> Path:
    """A file that the tests and all instances see."""
    folder = Path(os.environ["CLUSTER_TEST_FOLDER"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def names_this_instance(instances: str) -> bool:
    """Whether "1,3" names this instance; an empty text names all."""
    wanted = instances.replace(",", " ").split()
    return not wanted or str(instance_index()) in wanted


def pass_gate(gate: str) -> None:
    """Waits until a test opens the gate; leaves a file when reached, and when interrupted."""
    index = instance_index()
    shared_file(f"{gate}.reached.{index}").touch()
    try:
        while not shared_file(f"{gate}.open").exists():
            sleep_until(time.monotonic() + _POLL_INTERVAL)
    except comfy.model_management.InterruptProcessingException:
        shared_file(f"{gate}.interrupted.{index}").touch()
        raise


def sleep_until(moment: float) -> None:
    """Sleeps, and raises ComfyUI's own exception soon after an interrupt."""
    while (left := moment - time.monotonic()) > 0:
        comfy.model_management.throw_exception_if_processing_interrupted()
        time.sleep(min(left, _POLL_INTERVAL))


def count_run(name: str) -> None:
    """Notes one execution in this process."""
    with shared_file(f"{name}.count").open("a", encoding="utf-8") as file:
        file.write(f"{instance_index()}\n")


def end_with_the_tests() -> None:
    """Ends this process when its standard input ends: however the tests ended."""
    threading.Thread(target=_wait_for_end_of_input, name="test-end", daemon=True).start()


def _wait_for_end_of_input() -> None:
    # Not through sys.stdin: its lock, held here, would abort Python's own end.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)
