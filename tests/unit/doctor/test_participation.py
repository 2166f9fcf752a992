"""How the doctor comes and goes."""

from __future__ import annotations

from typing import Any

from comfy_cluster.config import ClusterConfig
from comfy_cluster.doctor.participation import Participation


class Recording:
    """Notes what is called."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name = name
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self._calls.append(f"{self._name}.{name}")


def test_the_peers_are_told_goodbye_whatever_discovery_waits_for() -> None:
    participation: Any = Participation(
        ClusterConfig.static(0, [("127.0.0.1", 1), ("127.0.0.1", 2)])
    )
    calls: list[str] = []
    participation._discovery = Recording("discovery", calls)
    participation._transport = Recording("transport", calls)
    participation.__exit__(None, None, None)
    assert calls == ["discovery.stop_soon", "transport.close", "discovery.close"]
