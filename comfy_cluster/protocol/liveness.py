"""Heartbeats to connected peers, and noticing that one went silent. One timer for all of them.

Any valid packet of a peer is a sign of life; the engine notes when the last one came.
"""

from __future__ import annotations

from collections.abc import Callable

from comfy_cluster.protocol.engine_port import EnginePort
from comfy_cluster.protocol.settings import ProtocolSettings
from comfy_cluster.protocol.timers import TimerKind, Timers


class Liveness:
    def __init__(
        self,
        *,
        settings: ProtocolSettings,
        engine: EnginePort,
        timers: Timers,
        send_heartbeat: Callable[[int], None],
        on_silent: Callable[[int, float, float], None],
    ) -> None:
        """`on_silent(peer, seconds, now)` is called once, and must end in `remove(peer)`; others
        may be removed by it too."""
        self._settings = settings
        self._engine = engine
        self._timers = timers
        self._send_heartbeat = send_heartbeat
        self._on_silent = on_silent
        self._alive_at: dict[int, float] = {}
        self._heartbeat_at = 0.0
        self._due_at = 0.0

    def add(self, peer: int, now: float) -> None:
        """A peer is connected: it gets a heartbeat now, which also proves the connection to it."""
        if not self._alive_at:
            self._heartbeat_at = now + self._settings.heartbeat_interval
        self._alive_at[peer] = now
        self._send_heartbeat(peer)
        self._set_timer()

    def remove(self, peer: int) -> None:
        self._alive_at.pop(peer, None)
        self._set_timer()

    def on_timer(self, now: float) -> None:
        self._forgive_own_stall(now)
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + self._settings.heartbeat_interval
            for peer in self._alive_at:
                self._send_heartbeat(peer)
        for peer in list(self._alive_at):
            if peer not in self._alive_at:  # losing another one ended its connection too
                continue
            alive_at = self._update(peer)
            if now >= alive_at + self._settings.instance_timeout:
                self._on_silent(peer, now - alive_at, now)
        self._set_timer()

    def _update(self, peer: int) -> float:
        received_at = float(self._engine.peer_stats(peer)["last_received_at"])
        self._alive_at[peer] = max(self._alive_at[peer], received_at)
        return self._alive_at[peer]

    def _forgive_own_stall(self, now: float) -> None:
        """When this process was stopped, peers get two intervals to be heard before they are lost:
        their packets wait in the socket."""
        interval = self._settings.heartbeat_interval
        if now - self._due_at <= interval:
            return
        floor = min(now, now - self._settings.instance_timeout + 2 * interval)
        for peer, alive_at in self._alive_at.items():
            self._alive_at[peer] = max(alive_at, floor)

    def _set_timer(self) -> None:
        if not self._alive_at:
            self._timers.cancel(TimerKind.LIVENESS, None)
            return
        silent_at = min(self._alive_at.values()) + self._settings.instance_timeout
        self._due_at = min(self._heartbeat_at, silent_at)
        self._timers.set(TimerKind.LIVENESS, None, self._due_at)
