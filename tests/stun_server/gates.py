"""What the tests of the gate share: keys, who asks, and a store that tells what it was asked."""

from __future__ import annotations

from typing import Any

import pytest

from stun_server.gate import Gate
from stun_server.problems import KeyRefused
from stun_server.registry import Asker
from stun_server.store import Store, StoreUnavailable
from stun_server.tries import LARGEST_FAILURES

KEY, OTHER_KEY, WRONG_KEY = (f"{name}-{'k' * 32}" for name in ("right", "other", "wrong"))
ASKER = Asker("192.0.2.1", request_id="request-1")


class Asked:
    """The store, and what it was asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[str] = []
        self.is_read_only = False

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        if self.is_read_only and name == "count":
            raise StoreUnavailable("STUN_STORE, read-only")
        return getattr(self._store, name)


def fail(gate: Gate, source: str, times: int = LARGEST_FAILURES) -> None:
    """Uses up what a source may fail in a window."""
    for _ in range(times):
        with pytest.raises(KeyRefused):
            gate.admit("a", WRONG_KEY, Asker(source))
