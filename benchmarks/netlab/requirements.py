"""What the link lab needs of the machine, and whether it is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Program, and the Debian package that has it.
PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables", "ethtool": "ethtool"}
TUN_DEVICE = Path("/dev/net/tun")
COMMAND_TIMEOUT = 30.0  # seconds; each takes milliseconds


class LabUnavailable(RuntimeError):
    """This machine, or this user, cannot have a link lab; the text says why."""


def why_unavailable(*programs: str) -> str | None:
    """Why there can be no lab here, or None. `programs` are needed beside the lab's own."""
    if sys.platform != "linux":
        return "the link lab needs Linux network namespaces"
    if os.geteuid() != 0:
        return "the link lab needs root, to make network namespaces"
    needed = {**PROGRAMS, **{name: name for name in programs}}
    missing = sorted({package for name, package in needed.items() if shutil.which(name) is None})
    if missing:
        return f"the link lab needs: apt-get install {' '.join(missing)}"
    if not TUN_DEVICE.exists():
        return f"the link lab needs {TUN_DEVICE}"
    return _why_no_namespace()


def _why_no_namespace() -> str | None:
    """Root in a container often may not."""
    done = subprocess.run(
        ["unshare", "--net", "true"], capture_output=True, text=True, timeout=COMMAND_TIMEOUT
    )
    if done.returncode:
        return f"the link lab may not make network namespaces here: {done.stderr.strip()}"
    return None


def run_command(arguments: list[str], *, text: str = "") -> str:
    """Runs a program of the system with `text` as its input; its output. LabUnavailable."""
    done = subprocess.run(
        arguments, input=text, capture_output=True, text=True, timeout=COMMAND_TIMEOUT
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise LabUnavailable(f"{' '.join(arguments)} failed: {said}\n{text}".strip())
    return done.stdout
