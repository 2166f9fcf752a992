"""ComfyUI's web pages in the versions that tests use, fetched once from the package index."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "comfyui-frontend-package"
DOWNLOAD_TIMEOUT = 120.0  # seconds; 30 MB
CACHE_VARIABLE = "XDG_CACHE_HOME"


class FrontendUnavailable(Exception):
    """A frontend cannot be had; the text says why."""


@dataclass(frozen=True, slots=True)
class Frontend:
    """One version of the page."""

    name: str
    requirement: str
    """As pip takes it."""
    has_action_bar: bool
    """Extensions may put buttons beside Run: since 1.31."""
    owns_promoted_values: bool
    """The value of a widget that a subgraph shows belongs to the subgraph's node."""
    has_nodes_2: bool
    """For everybody; before, it is a trial that hardly anybody turns on."""


OLDEST = Frontend("1.27", f"{PACKAGE}==1.27.10", False, False, False)
NEWEST = Frontend("1.58", f"{PACKAGE}==1.58.*", True, True, True)


@functools.cache
def fetch(frontend: Frontend) -> Path:
    """The folder that ComfyUI takes as `--front-end-root`. FrontendUnavailable: not to be had."""
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache") / "comfy-cluster-tests"
    wheels = cache / "wheels" / frontend.name
    problem = ""
    if frontend.requirement.endswith("*") or not any(wheels.glob("*.whl")):
        problem = _download(frontend.requirement, wheels)
    found = sorted(wheels.glob("*.whl"), key=_version)
    if not found:
        raise FrontendUnavailable(f"{frontend.requirement} cannot be had: {problem}")
    unpacked = cache / found[-1].stem
    if not unpacked.exists():
        _unpack(found[-1], unpacked)
    return unpacked / "comfyui_frontend_package" / "static"


def _download(requirement: str, folder: Path) -> str:
    """Puts the newest fitting wheel into a folder; what went wrong, or nothing.

    Without a network an earlier one is good enough, so a failure is for the caller to judge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", requirement],
        capture_output=True,
        text=True,
        timeout=DOWNLOAD_TIMEOUT,
    )
    return done.stderr.strip()[-500:] if done.returncode else ""


def _version(wheel: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in wheel.stem.split("-")[1].split(".") if part.isdigit())


def _unpack(wheel: Path, folder: Path) -> None:
    """All or nothing, also when two test runs do it at the same time."""
    place = folder.with_name(f"{folder.name}.{os.getpid()}")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    try:
        place.rename(folder)
    except OSError:
        shutil.rmtree(place)
        if not folder.exists():
            raise
