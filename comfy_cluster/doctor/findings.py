"""What the doctor found: values only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from comfy_cluster.errors import ConfigError


class Layer(str, Enum):
    """What a finding is about, from the ground up."""

    SETTINGS = "settings"
    NAME = "name"
    PORT = "port"
    BUFFERS = "buffers"
    SERVER = "server"
    CLOCK = "clock"
    DISCOVERY = "discovery"
    NETWORK = "network"
    FIREWALL = "firewall"
    PROCESS = "process"
    """The other machine is there, and no instance on it."""
    HANDSHAKE = "handshake"
    """Both talk, and do not belong together."""
    PEER = "peer"
    """Connected: UDP passes both ways."""
    MTU = "mtu"
    VERSION = "version"


class State(str, Enum):
    OK = "ok"
    WARNING = "warning"
    """The cluster works, worse than it could; or it may not work."""
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    layer: Layer
    subject: str
    """Whom it is about: a setting, a name, a server, `instance 2`."""
    state: State
    text: str
    advice: str = ""
    """What to do, one step a line; empty where all is well."""


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order in which they were made."""

    findings: tuple[Finding, ...]
    instance_count: int = 0
    """0: the settings are wrong, so nobody knows."""
    connected_count: int | None = None
    """Instances that are connected, this one included; None: that could not be tried."""

    @property
    def has_failed(self) -> bool:
        return any(each.state is State.FAILURE for each in self.findings)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self) | {"has_failed": self.has_failed}, indent=2)


def ok(layer: Layer, subject: str, text: str) -> Finding:
    return Finding(layer, subject, State.OK, text)


def warning(layer: Layer, subject: str, text: str, *, advice: Sequence[str]) -> Finding:
    """`advice`: steps."""
    return Finding(layer, subject, State.WARNING, text, "\n".join(advice))


def failure(layer: Layer, subject: str, text: str, *, advice: Sequence[str]) -> Finding:
    """`advice`: steps."""
    return Finding(layer, subject, State.FAILURE, text, "\n".join(advice))


def settings_failure(error: ConfigError) -> Finding:
    """A setting is wrong: no other check makes sense."""
    return failure(
        Layer.SETTINGS,
        error.variable or "environment",
        str(error),
        advice=["correct it where ComfyUI is started; `comfy-cluster info` shows how all are read"],
    )
