"""The GOODBYE of an instance that closes, where something is in its way."""

from __future__ import annotations

import errno
import random
import threading
import time
from types import ModuleType

import pytest

from comfy_cluster.protocol import PeerLost as PeerLostEvent
from comfy_cluster.transport import assembly
from tests.integration.transports import WAIT, Instances, our_threads, wait_until

pytestmark = pytest.mark.integration


def test_goodbye_leaves_though_the_control_thread_does_not_end(
    engine: ModuleType, rng: random.Random
) -> None:
    """It waits for the processor on a busy machine, or in a listener."""
    may_go_on = threading.Event()
    with Instances(2, engine, instance_timeout=20.0) as (first, second):
        parts = second.transport._parts
        assert parts is not None
        parts.control.post(lambda _: may_go_on.wait(WAIT))
        began = time.monotonic()
        second.transport.close()
        assert time.monotonic() - began < 2.0
        try:
            first.wait_for(lambda: not first.connected)
            assert time.monotonic() - began < 10.0
            (lost,) = [each for each in first.events if isinstance(each, PeerLostEvent)]
            assert lost.reason.startswith("left")
        finally:
            may_go_on.set()
            assembly.take_apart(parts)  # what had to be left open


def test_a_goodbye_that_cannot_be_said_keeps_nothing_open(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with Instances(1, engine) as (lone,):
        parts = lone.transport._parts
        assert parts is not None
        monkeypatch.setattr(assembly, "_send_farewell", fail)
        lone.transport.close()
        assert parts.sock.fileno() == -1
        wait_until(lambda: our_threads() == [], "the end of all threads")
