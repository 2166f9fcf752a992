"""Traffic between the hosts of a lab: started, awaited, and what its ends say."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from benchmarks.netlab import Host, Lab
from tests.netlab.traffic import READY

TIMEOUT = 60.0  # seconds; a bound for a broken link
PORT = 7000


def start_sink(kind: str, host: Host) -> subprocess.Popen[str]:
    sink = host.python("tests.netlab.traffic", f"{kind}-sink", str(PORT))
    assert sink.stdout is not None and sink.stdout.readline().strip() == READY
    return sink


def start_source(kind: str, host: Host, address: str, *options: int) -> subprocess.Popen[str]:
    arguments = [address, str(PORT), *map(str, options)]
    return host.python("tests.netlab.traffic", f"{kind}-source", *arguments)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    text = process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 0 and text, process.args
    result: dict[str, Any] = json.loads(text)
    return result


def carry(kind: str, lab: Lab, *options: int) -> dict[str, Any]:
    """From host 0 to host 1: what the sink says; `options` are the source's."""
    source, sink = lab.hosts[:2]
    receiver = start_sink(kind, sink)
    sent = result_of(start_source(kind, source, sink.address, *options))
    return result_of(receiver) | {f"sent_{name}": value for name, value in sent.items()}
