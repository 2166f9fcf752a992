"""Builds the relay's Cython module when it is first needed, into a cache folder of the user.

The project installs one compiled extension, and this is not it. The folder's name holds a digest of
the source and of the interpreter, so that a changed source is built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from benchmarks.netlab.profile import LinkProfile
from benchmarks.netlab.requirements import LabUnavailable

SOURCES = [Path(__file__).with_name(name) for name in ("relay.pyx", "relay_frames.pxi")]
MODULE = "relay"
CACHE = Path.home() / ".cache" / "comfy-cluster-netlab"
BUILD_TIMEOUT = 300.0  # seconds; 5 on a free machine
BUILD = f"""
from Cython.Build import cythonize
from setuptools import Extension, setup

extension = Extension("{MODULE}", ["{MODULE}.pyx"], extra_compile_args=["-O2"])
modules = cythonize([extension], quiet=True)
setup(name="{MODULE}", ext_modules=modules, script_args=["-q", "build_ext", "--inplace"])
"""


READY = "ready"  # what the relay's process says once it relays


def relay_command(profile: LinkProfile, module: Path, namespaces: list[str]) -> list[str]:
    """The command line of the relay's process, whose ports are `eth0` in these namespaces."""
    options = {
        "module": module,
        "rate": profile.relay_rate,
        "queue": profile.queue_size,
        "burst": profile.burst,
        "delay": int(profile.rtt_ms * 1e6 / 2),
        "jitter": int(profile.jitter_ms * 1e6),
        "hold": int(profile.reorder_ms * 1e6),
        "loss": profile.loss,
        "reorder": profile.reorder,
        "seed": profile.seed,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "benchmarks.netlab.relay_process", *arguments, *namespaces]


def build_relay() -> Path:
    """The built module's file. LabUnavailable: no compiler, no Cython."""
    digest = hashlib.sha256(_all_source() + sys.version.encode()).hexdigest()[:16]
    folder = CACHE / digest
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two labs may start at once
        return _built(folder) or _build(folder)


def load_relay(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _all_source() -> bytes:
    return b"".join(source.read_bytes() for source in SOURCES)


def _built(folder: Path) -> Path | None:
    return next(folder.glob(f"{MODULE}.*.so"), None)


def _build(folder: Path) -> Path:
    for source in SOURCES:
        shutil.copy(source, folder)
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT,
    )
    built = _built(folder)
    if done.returncode or built is None:
        said = (done.stdout + done.stderr).strip()
        raise LabUnavailable(f"the relay was not built; it needs Cython and a C compiler:\n{said}")
    return built
