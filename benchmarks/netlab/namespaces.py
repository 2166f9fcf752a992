"""Named network namespaces of labs: made, removed, and found again when a lab died with SIGKILL.

A name holds the process that owns it: `ccnetlab-PID-START-NUMBER-ROLE`, START being the moment the
kernel noted for that process. So two labs never meet, and leftovers are known as such. Namespaces
with any other name are not touched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time
from pathlib import Path

from benchmarks.netlab.requirements import LabUnavailable, run_command

PREFIX = "ccnetlab"
FOLDER = Path("/run/netns")
NAME = re.compile(rf"{PREFIX}-(\d+)-(\d+)-(\d+)-\w+")
END_TIMEOUT = 5.0  # seconds that killed processes get to be gone

# No router solicitations among the packets that count, no iptables on the bridge's way, and TCP
# windows that a gigabit over 100 ms does not outgrow.
SETTINGS = """
set_to() { [ ! -w /proc/sys/net/$1 ] || echo "$2" >/proc/sys/net/$1; }
set_to ipv6/conf/all/disable_ipv6 1
set_to ipv6/conf/default/disable_ipv6 1
set_to bridge/bridge-nf-call-iptables 0
set_to bridge/bridge-nf-call-ip6tables 0
set_to bridge/bridge-nf-call-arptables 0
set_to ipv4/tcp_rmem "4096 131072 134217728"
set_to ipv4/tcp_wmem "4096 65536 134217728"
"""

_numbers = itertools.count()


def new_lab_name() -> str:
    """The common beginning of one lab's namespaces, unlike any other lab's."""
    return f"{PREFIX}-{os.getpid()}-{_started_at(os.getpid())}-{next(_numbers)}"


def add_namespace(name: str) -> None:
    run_command(["ip", "netns", "add", name])
    run_command(["ip", "-n", name, "link", "set", "lo", "up"])
    run_command(["ip", "netns", "exec", name, "sh", "-c", SETTINGS])


def remove_namespace(name: str) -> None:
    """Ends what runs in the namespace, and removes it with all its devices; fine if it is gone."""
    for number in _processes_in(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    deadline = time.monotonic() + END_TIMEOUT
    while _processes_in(name) and time.monotonic() < deadline:
        time.sleep(0.01)
    if (FOLDER / name).exists():
        with contextlib.suppress(LabUnavailable):  # another lab's start was faster
            run_command(["ip", "netns", "del", name])


def remove_leftovers() -> list[str]:
    """Removes the namespaces of labs whose process is gone; their names."""
    removed = [name for name in namespaces() if not _has_owner(name)]
    for name in removed:
        remove_namespace(name)
    return removed


def namespaces() -> list[str]:
    """Names of all labs' namespaces on this machine."""
    if not FOLDER.is_dir():
        return []
    return sorted(path.name for path in FOLDER.iterdir() if NAME.fullmatch(path.name))


def _has_owner(name: str) -> bool:
    match = NAME.fullmatch(name)
    return match is not None and _started_at(int(match[1])) == match[2]


def _started_at(process: int) -> str | None:
    """Clock ticks from boot to the start of the process; None: there is none."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the program's name may hold anything
    has_ended = fields[0] in "ZX"
    return None if has_ended else fields[19]


def _processes_in(name: str) -> list[int]:
    if not (FOLDER / name).exists():
        return []
    try:
        return [int(line) for line in run_command(["ip", "netns", "pids", name]).split()]
    except LabUnavailable:  # removed at this moment
        return []
