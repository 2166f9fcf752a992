"""Keys of buffers that somebody on this instance waits for.

A claim ends with its buffer, by `discard`, or by failing. While its source is not connected it has
a timer; once the source is connected it waits as long as that connection lasts.
"""

from __future__ import annotations

from comfy_cluster.protocol.timers import TimerKind, Timers
from comfy_cluster.wire import TransferKey


class Claims:
    def __init__(self, timers: Timers, *, connection_timeout: float) -> None:
        self._timers = timers
        self._connection_timeout = connection_timeout
        self._keys: dict[TransferKey, None] = {}

    def __contains__(self, key: TransferKey) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: TransferKey, now: float, *, is_connected: bool) -> None:
        self._keys[key] = None
        if not is_connected:
            self._timers.set(TimerKind.CLAIM, key, now + self._connection_timeout)

    def discard(self, key: TransferKey) -> None:
        if key in self._keys:
            del self._keys[key]
            self._timers.cancel(TimerKind.CLAIM, key)

    def of_source(self, source: int) -> list[TransferKey]:
        return [key for key in self._keys if key.source == source]

    def of_job(self, job_id: str) -> list[TransferKey]:
        return [key for key in self._keys if key.job_id == job_id]

    def all(self) -> list[TransferKey]:
        return list(self._keys)
