"""What tells this run of this instance from any other, and what its machine offers.

Pure functions: nothing is looked up at import. Settings are in `config.py`; used by it and by
whoever announces this instance to its peers.
"""

from __future__ import annotations

import os
import platform
import random
import sys
from pathlib import Path

import comfy_cluster

# cgroup v1 writes "no limit" as the largest page-aligned int64; anything near it is no limit.
_CGROUP_UNLIMITED = 1 << 60


def software_version() -> str:
    """The version of this package, as peers are told it."""
    return comfy_cluster.__version__


def new_boot_id(rng: random.Random | None = None) -> int:
    """A random u64, never 0, that tells a restarted instance from the one before."""
    return (rng or random.SystemRandom()).getrandbits(64) or 1


def machine_hostname() -> str:
    """This machine's name, for logs and views; never used to reach it."""
    return platform.node() or "unknown"


def total_memory(*, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of RAM that this process may use: the machine's, or its control group's if lower.

    Raises OSError where the machine does not tell.
    """
    limits = [_machine_memory(), *_cgroup_limits(proc, cgroup)]
    return min(limits)


def _machine_memory() -> int:
    if sys.platform == "win32":
        return _windows_memory()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _windows_memory() -> int:
    import ctypes

    # A MEMORYSTATUSEX is two u32 and seven u64; ullTotalPhys is the first of the seven.
    status = (ctypes.c_uint64 * 8)()
    status[0] = ctypes.sizeof(status)
    kernel32 = ctypes.CDLL("kernel32")
    if not kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx failed")
    return int(status[1])


def _cgroup_limits(proc: Path, cgroup: Path) -> list[int]:
    """The memory limits of this process's control group and of those above it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, name = cgroup, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroup / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / group.lstrip("/")
        for level in [folder, *folder.parents]:
            if level.is_relative_to(root):
                limits += _limit_of(level / name)
    return limits


def _limit_of(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() and int(text) < _CGROUP_UNLIMITED else []
