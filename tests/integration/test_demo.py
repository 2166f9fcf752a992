"""`comfy-cluster demo` as a user runs it: real processes, real photographs, and what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import skimage.data
from PIL import Image, ImageOps

from comfy_cluster.cli.sheet import sheet_size

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "comfy_cluster.cli", "demo"]
PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "camera")
WIDTH, HEIGHT = 160, 120
DEADLINE = 90  # seconds; each process loads torch, on a machine that may be busy
MUCH_TOO_LONG_MS = "60000"  # an image takes longer than any test
CONNECTED = "instances are connected"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs of one size."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        ImageOps.fit(image, (WIDTH, HEIGHT)).save(folder / f"{name}.png")
    return folder


def environ(**variables: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in os.environ if "COMFY_CLUSTER" not in name}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


def run_demo(
    folder: Path, *arguments: object, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env=environ(**variables),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def numbers_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    numbers: dict[str, Any] = json.loads(done.stdout)
    return numbers


def items_of(numbers: dict[str, Any]) -> list[int]:
    return [each["items"] for each in numbers["instances"]]


def test_four_instances_make_of_photographs_what_one_process_makes(
    photographs: Path, tmp_path: Path
) -> None:
    done = run_demo(tmp_path, "--input", photographs, "--output", "mine.png", "--json")
    numbers = numbers_of(done)
    assert numbers["identical"] is True
    assert numbers["differences"] == []
    assert (numbers["width"], numbers["height"]) == (WIDTH, HEIGHT)
    assert items_of(numbers) == [2, 1, 1, 1]
    raw_size = WIDTH * HEIGHT * 3 * 4  # results are no 8-bit images: they travel as float32
    for each in numbers["instances"][1:]:
        assert each["bytes_sent"] > raw_size
        assert 0 < each["bytes_received"] < 2 * raw_size  # its image, not the batch
        assert each["compute_seconds"] > 0
        assert each["transfer_seconds"] > 0
        assert each["megabytes_per_second"] > 0
    assert numbers["instances"][0]["bytes_received"] > 3 * raw_size
    with Image.open(tmp_path / "mine.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == sheet_size(len(PHOTOGRAPHS), (WIDTH, HEIGHT))


def test_two_instances_and_one_image_leave_one_without_work(
    photographs: Path, tmp_path: Path
) -> None:
    done = run_demo(tmp_path, "-n", 2, "--input", photographs, "--count", 1, "--json")
    numbers = numbers_of(done)
    assert numbers["identical"] is True
    assert items_of(numbers) == [1, 0]


def test_settings_of_the_user_hold_unless_the_demo_must_decide(tmp_path: Path) -> None:
    variables = {
        "COMFY_CLUSTER_PURE_PYTHON": "1",
        "COMFY_CLUSTER_INSTANCE_COUNT": "9",
        "COMFY_CLUSTER_DIRECT_LISTEN_PORT": "1",
        "COMFY_CLUSTER_KEY": "too short",
    }
    done = run_demo(tmp_path, "-n", 2, "--count", 2, "--size", 32, "--json", **variables)
    numbers = numbers_of(done)
    assert numbers["engine"] == "pure Python"
    assert numbers["instance_count"] == 2


def test_a_missing_folder_is_wrong_usage(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--input", "missing")
    assert done.returncode == 2
    assert "'missing' does not exist" in done.stderr
    assert "--help" in done.stderr


class RunningDemo:
    """A demo in the middle of its work, and its follower processes by instance index."""

    def __init__(self, folder: Path, instance_count: int) -> None:
        arguments = ["-n", str(instance_count), "--count", "8", "--size", "64"]
        self.process = subprocess.Popen(
            [*COMMAND, *arguments, "--emulate-gpu-ms", MUCH_TOO_LONG_MS],
            cwd=folder,
            env=environ(TMPDIR=str(folder)),  # a leader that is killed cannot tidy up
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that starts the tests in the background has them ignore Ctrl+C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.output = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.output += line
            if CONNECTED in line:
                break
        self.followers = {
            int(child.environ()["COMFY_CLUSTER_INSTANCE_INDEX"]): child
            for child in psutil.Process(self.process.pid).children()
        }

    def wait(self) -> int:
        """The exit code; `output` is complete after it."""
        _, rest = self.process.communicate(timeout=DEADLINE)
        self.output += rest
        return self.process.returncode

    def assert_no_follower_is_left(self, timeout: float) -> None:
        _, alive = psutil.wait_procs(list(self.followers.values()), timeout)
        assert alive == []

    def close(self) -> None:
        for process in self.followers.values():
            if process.is_running():
                process.kill()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def running_demo(tmp_path: Path, instance_count: int) -> Iterator[RunningDemo]:
    demo = RunningDemo(tmp_path, instance_count)
    yield demo
    demo.close()


@pytest.mark.parametrize("instance_count", [3])
def test_a_follower_that_is_killed_is_named(running_demo: RunningDemo) -> None:
    assert set(running_demo.followers) == {1, 2}, running_demo.output
    running_demo.followers[2].kill()
    assert running_demo.wait() == 1
    assert "Error: Instance 2 (process" in running_demo.output
    assert "was killed by SIGKILL" in running_demo.output
    assert "Traceback" not in running_demo.output
    running_demo.assert_no_follower_is_left(timeout=0)


@pytest.mark.parametrize("instance_count", [2])
def test_a_follower_that_hangs_is_named(running_demo: RunningDemo) -> None:
    running_demo.followers[1].suspend()
    assert running_demo.wait() == 1
    assert "Error: Instance 1 (process" in running_demo.output
    assert "does not answer any more" in running_demo.output
    assert "silent for" in running_demo.output
    assert "Traceback" not in running_demo.output
    running_demo.assert_no_follower_is_left(timeout=0)


@pytest.mark.parametrize("instance_count", [2])
def test_ctrl_c_ends_every_process_at_once(running_demo: RunningDemo) -> None:
    assert set(running_demo.followers) == {1}, running_demo.output
    running_demo.process.send_signal(signal.SIGINT)
    assert running_demo.wait() == 130
    assert "Interrupted" in running_demo.output
    assert "Traceback" not in running_demo.output
    running_demo.assert_no_follower_is_left(timeout=0)


@pytest.mark.parametrize("instance_count", [2])
def test_followers_end_when_the_leader_is_killed(running_demo: RunningDemo) -> None:
    assert set(running_demo.followers) == {1}, running_demo.output
    running_demo.process.kill()
    running_demo.assert_no_follower_is_left(timeout=DEADLINE)
