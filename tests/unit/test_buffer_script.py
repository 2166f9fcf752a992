"""scripts/set_kernel_buffer_sizes.sh, on a make-believe Linux and macOS."""

from __future__ import annotations

import os
import plistlib
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "set_kernel_buffer_sizes.sh"
WANTED = 268_435_456
LINUX = {"net.core.rmem_max": 212_992, "net.core.wmem_max": 212_992}
MACOS = {"kern.ipc.maxsockbuf": 8_388_608}

# `sysctl` with a file for each limit; what is above $LARGEST is refused.
SYSCTL = """#!/bin/sh
if [ "$1" = -n ]; then cat "$LIMITS/$2"; exit; fi
name=${2%%=*} value=${2#*=}
[ -n "$REFUSAL" ] && { echo "sysctl: $REFUSAL" >&2; exit 1; }
[ "$value" -gt "$LARGEST" ] && { echo "sysctl: Result too large" >&2; exit 1; }
echo "$value" >"$LIMITS/$name"
"""


class Machine:
    def __init__(self, folder: Path, system: str, limits: dict[str, int]) -> None:
        self.folder = folder
        self.limits_folder = folder / "limits"
        programs = folder / "bin"
        for each in (self.limits_folder, programs):
            each.mkdir()
        for name, value in limits.items():
            (self.limits_folder / name).write_text(f"{value}\n")
        texts = {
            "sysctl": SYSCTL,
            "uname": f"#!/bin/sh\necho {system}\n",
            "id": '#!/bin/sh\necho "${USER_ID:-0}"\n',
            "chown": "#!/bin/sh\n",
        }
        for name, text in texts.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.environ = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "LIMITS": str(self.limits_folder),
            "LARGEST": str(1 << 40),
            "DESTDIR": str(folder / "root"),
        }

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(SCRIPT), *arguments],
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=30,
        )

    @property
    def limits(self) -> dict[str, int]:
        return {each.name: int(each.read_text()) for each in self.limits_folder.iterdir()}


@pytest.fixture
def linux(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "Linux", LINUX)


@pytest.fixture
def macos(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "Darwin", MACOS)


def test_limits_are_raised_and_not_twice(linux: Machine) -> None:
    assert linux.run().returncode == 0
    assert linux.limits == dict.fromkeys(LINUX, WANTED)
    again = linux.run()
    assert again.returncode == 0 and again.stdout.count("which is enough") == 2
    assert not (linux.folder / "root").exists()


def test_larger_limits_stay(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "Linux", dict.fromkeys(LINUX, 1 << 30))
    assert machine.run("--permanent").returncode == 0
    assert machine.limits == dict.fromkeys(LINUX, 1 << 30)


def test_they_are_kept_on_linux(linux: Machine) -> None:
    for _ in range(2):
        assert linux.run("--permanent").returncode == 0
    kept = linux.folder / "root/etc/sysctl.d/60-comfy-cluster.conf"
    lines = [line for line in kept.read_text().splitlines() if not line.startswith("#")]
    assert lines == [f"{name} = {WANTED}" for name in LINUX]


def test_they_are_kept_on_macos_as_large_as_it_takes(macos: Machine) -> None:
    assert macos.run("--permanent", LARGEST="40000000").returncode == 0
    assert macos.limits == {"kern.ipc.maxsockbuf": WANTED // 8}
    (kept,) = (macos.folder / "root/Library/LaunchDaemons").iterdir()
    job = plistlib.loads(kept.read_bytes())
    assert job["ProgramArguments"][1:] == [f"kern.ipc.maxsockbuf={WANTED // 8}"]
    assert job["RunAtLoad"] is True


def test_a_container_says_where_to_run_it(linux: Machine) -> None:
    done = linux.run(REFUSAL="Read-only file system")
    assert done.returncode == 1
    assert "run this script on the machine that it runs on" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environ", "text"),
    [
        (["--forever"], {}, "there is no option --forever"),
        (["--permanent"], {"USER_ID": "1000"}, "only root may change this: sudo"),
    ],
)
def test_what_cannot_be_is_told(
    linux: Machine, arguments: list[str], environ: dict[str, str], text: str
) -> None:
    done = linux.run(*arguments, **environ)
    assert done.returncode == 1 and text in done.stderr
    assert linux.limits == LINUX


def test_show_changes_nothing(linux: Machine) -> None:
    done = linux.run("--show", USER_ID="1000")
    assert done.returncode == 0 and "net.core.rmem_max = 212992" in done.stdout
    assert linux.limits == LINUX


def test_another_system_is_told(tmp_path: Path) -> None:
    done = Machine(tmp_path, "Plan9", LINUX).run()
    assert done.returncode == 1 and "Plan9 is neither" in done.stderr
