"""Instances in the hosts of a lab, started and listened to by tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from benchmarks.netlab import Host
from benchmarks.netlab.lab import ROOT

WAIT = 30.0  # seconds; a bound for a broken build
PREFIX = "COMFY_CLUSTER_"
# Short ones: the tests wait until somebody is lost.
TIMES = {"HEARTBEAT_INTERVAL": "0.1", "INSTANCE_TIMEOUT": "0.6"}
DEFAULT_TIMES = dict.fromkeys(TIMES, "")  # those that users have


def wait_for_all(members: Sequence[Member]) -> None:
    """Until each is connected to all others."""
    try:
        for each in members:
            each.wait_for_peers(*(other.index for other in members if other is not each))
    except AssertionError as error:
        raise AssertionError("\n".join(each.report() for each in members)) from error


class Member:
    """One instance; `settings` without their prefix, empty ones are not set."""

    def __init__(self, host: Host, index: int, count: int, **settings: str) -> None:
        self.index = index
        ours = {
            "INSTANCE_COUNT": str(count),
            "INSTANCE_INDEX": str(index),
            "ROLE": "FOLLOWER" if index else "LEADER",
            "REGISTRATION_MODE": "broadcast",
            **TIMES,
            **settings,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self.process: subprocess.Popen[str] = host.popen(
            [sys.executable, "-m", "tests.netlab.member"],
            text=True,
            cwd=ROOT,
            env=kept | {PREFIX + name: value for name, value in ours.items() if value},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()

    @property
    def connected(self) -> dict[int, str]:
        """By peer where it is."""
        found: dict[int, str] = {}
        for event in list(self.events):
            if event["event"] == "connected":
                found[event["peer"]] = event["hostname"]
            elif event["event"] == "lost":
                found.pop(event["peer"], None)
        return found

    def wait_for_peers(self, *peers: int) -> None:
        """Until exactly those are connected."""
        with self._changed:
            is_so = self._changed.wait_for(lambda: set(self.connected) == set(peers), WAIT)
        assert is_so, f"instance {self.index} has {self.connected}: {self.events}"

    def report(self) -> str:
        """Where it stands, for people."""
        code = self.process.poll()
        if code is not None:
            return f"instance {self.index} had ended with {code}: {self.events}"
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return f"instance {self.index}: {self.events}, {self.wait_for('stands')}"

    def wait_for(self, event: str, **values: object) -> dict[str, Any]:
        """The first event of that kind with those values."""
        wanted = {"event": event, **values}

        def found() -> dict[str, Any] | None:
            return next((each for each in self.events if wanted.items() <= each.items()), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() is not None, WAIT), self.events
            each = found()
        assert each is not None
        return each

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(WAIT)
