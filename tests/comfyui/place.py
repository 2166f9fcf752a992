"""Where a ComfyUI is, and whether it can run this project's nodes. Starts no ComfyUI."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements.txt"
FOLDER_VARIABLE = "COMFYUI_DIR"
INSTALL_TIMEOUT = 300.0  # seconds
# Prints those of the named distributions that are not installed.
_LIST_MISSING = """
import sys
from importlib import metadata
for name in sys.argv[1:]:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        print(name)
"""


class ComfyUnavailable(Exception):
    """There is no ComfyUI to test with; the text says what was looked for."""


@dataclass(frozen=True, slots=True)
class ComfyPlace:
    """A ComfyUI that can be started."""

    folder: Path
    python: Path
    """Of its own environment."""

    @property
    def main(self) -> Path:
        return self.folder / "main.py"


@functools.cache
def find_comfyui() -> ComfyPlace:
    """The ComfyUI of `COMFYUI_DIR`, else of ~/ComfyUI, with our requirements installed in it."""
    place = _place_of(os.environ)
    if missing := _missing_requirements(place):
        _install_requirements(place, missing)
    return place


def _place_of(environ: Mapping[str, str]) -> ComfyPlace:
    folder = Path(environ.get(FOLDER_VARIABLE) or Path.home() / "ComfyUI").expanduser()
    scripts = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    place = ComfyPlace(folder, folder / ".venv" / scripts)
    for needed in (place.main, place.python):
        if not needed.exists():
            raise ComfyUnavailable(
                f"no ComfyUI to test with: {needed} is not there. Set {FOLDER_VARIABLE} to the "
                "folder of a ComfyUI whose environment is its .venv"
            )
    return place


def _missing_requirements(place: ComfyPlace) -> list[str]:
    lines = REQUIREMENTS.read_text(encoding="utf-8").split()
    names = [re.split(r"[<>=!~\[;]", line, maxsplit=1)[0] for line in lines]
    command = [str(place.python), "-c", _LIST_MISSING, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


def _install_requirements(place: ComfyPlace, missing: list[str]) -> None:
    """What ComfyUI-Manager does with a node pack: its requirements, and not the pack itself."""
    command = [str(place.python), "-m", "pip", "install", "-q", "-r", str(REQUIREMENTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
    if done.returncode != 0:
        raise ComfyUnavailable(
            f"the ComfyUI of {place.folder} lacks {', '.join(missing)}, and pip cannot install "
            f"them: {done.stderr.strip()[-500:]}"
        )
