"""Identity of a run, and the memory it may use."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import comfy_cluster
from comfy_cluster import identity

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_boot_ids_differ_and_fit_64_bits(rng: random.Random) -> None:
    ids = {identity.new_boot_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(0 < boot_id < 1 << 64 for boot_id in ids)
    assert identity.new_boot_id(random.Random(7)) == identity.new_boot_id(random.Random(7))


def test_boot_id_is_never_zero() -> None:
    class Zero(random.Random):
        def getrandbits(self, k: int, /) -> int:
            return 0

    assert identity.new_boot_id(Zero()) == 1


def test_software_version_is_the_packages() -> None:
    assert identity.software_version() == comfy_cluster.__version__


def test_machine_hostname_is_not_empty() -> None:
    assert identity.machine_hostname()


def memory_with(tmp_path: Path, groups: str, limits: dict[str, str]) -> int:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(groups)
    for name, limit in limits.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(limit + "\n")
    return identity.total_memory(proc=proc, cgroup=cgroup)


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        pytest.param("0::/\n", {"memory.max": "1000000"}, 1_000_000, id="v2-container"),
        pytest.param(
            "0::/a/b\n",
            {"memory.max": "max", "a/memory.max": "500000", "a/b/memory.max": "700000"},
            500_000,
            id="v2-parent-is-lower",
        ),
        pytest.param("0::/a\n", {"a/memory.max": "max"}, MACHINE, id="v2-no-limit"),
        pytest.param(
            "5:cpu:/x\n4:memory:/x\n",
            {"memory/x/memory.limit_in_bytes": "300000"},
            300_000,
            id="v1",
        ),
        pytest.param(
            "4:memory:/x\n",
            {"memory/x/memory.limit_in_bytes": "9223372036854771712"},
            MACHINE,
            id="v1-no-limit",
        ),
        pytest.param("0::/gone\n", {}, MACHINE, id="no-files"),
        pytest.param("0::/\n", {"memory.max": str(1 << 59)}, MACHINE, id="above-the-machine"),
    ],
)
def test_total_memory_honours_control_groups(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int
) -> None:
    assert memory_with(tmp_path, groups, limits) == expected


def test_total_memory_without_proc(tmp_path: Path) -> None:
    assert identity.total_memory(proc=tmp_path / "none", cgroup=tmp_path) == MACHINE
