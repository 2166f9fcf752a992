"""Relays: what one peer sends goes on to the next while it is still arriving."""

from __future__ import annotations

import random
from types import ModuleType

import pytest

from tests.engine_instance import EngineInstance, Run, Scenario
from tests.simnet import Link

SIZE = 400_000
SOURCE_ID = 7
LINK = Link(delay=0.01, rate=1_250_000.0)  # 10 Mbit/s: a third of a second for SIZE bytes


class Chain:
    """Instance 0 sends to 1, which relays to 2, which relays to 3, and so on."""

    def __init__(
        self, engine: ModuleType, *, length: int = 3, link: Link = LINK, late: bool = False
    ) -> None:
        self.run = Run(engine, Scenario(1, link, (), instance_count=length))
        self.instances: list[EngineInstance] = self.run.instances
        self.payload = random.Random(3).randbytes(SIZE)
        self.memories = [bytearray(SIZE) for _ in range(length)]
        self.engine = engine
        for hop in range(1, length):
            self.open_incoming(hop)
        if not late:
            self.open_relays()
        self.instances[0].core.open_outgoing(1, SOURCE_ID, b"", self.payload, chunk_size=1148)

    def open_incoming(self, hop: int) -> None:
        self.instances[hop].core.open_incoming(
            hop - 1, SOURCE_ID + hop - 1, self.memories[hop], size=SIZE, chunk_size=1148 - hop + 1
        )

    def open_relays(self) -> None:
        for hop in range(1, len(self.instances) - 1):
            self.instances[hop].core.open_relay(
                hop + 1, SOURCE_ID + hop, SOURCE_ID + hop - 1, chunk_size=1148 - hop
            )

    def has_event(self, hop: int, code: int) -> bool:
        return any(event[0] == code for event in self.instances[hop].events)

    def wait(self, hop: int, code: int) -> float:
        """Run until `hop` has had the event; return the time."""
        self.run.network.run_until(lambda: self.has_event(hop, code), time_limit=60.0)
        return self.run.network.now


@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_a_chain_of_relays_delivers_to_every_hop(engine: ModuleType, loss: float) -> None:
    chain = Chain(engine, length=5, link=Link(delay=0.01, rate=1_250_000.0, loss=loss))
    for hop in range(1, 5):
        chain.wait(hop, engine.EVENT_INCOMING_COMPLETE)
        chain.wait(hop - 1, engine.EVENT_OUTGOING_ACKED)
        assert chain.memories[hop] == chain.payload


def test_relaying_overlaps_with_receiving(engine: ModuleType) -> None:
    """Store and forward would take once more as long for each hop."""
    times = {}
    for length in (2, 5):
        chain = Chain(engine, length=length)
        times[length] = chain.wait(length - 1, engine.EVENT_INCOMING_COMPLETE)
    assert times[5] < 1.6 * times[2]


def test_a_relay_that_is_opened_late_sends_what_is_there(engine: ModuleType) -> None:
    chain = Chain(engine, late=True)
    chain.run.network.run_for(0.2)
    chain.open_relays()
    chain.wait(2, engine.EVENT_INCOMING_COMPLETE)
    assert chain.memories[2] == chain.payload


def test_a_relay_of_a_complete_source_outlives_it(engine: ModuleType) -> None:
    chain = Chain(engine, late=True)
    chain.wait(1, engine.EVENT_INCOMING_COMPLETE)
    chain.open_relays()
    chain.instances[1].core.close_incoming(SOURCE_ID)
    chain.wait(2, engine.EVENT_INCOMING_COMPLETE)
    assert chain.memories[2] == chain.payload


def test_a_relay_whose_source_ends_early_falls_silent(engine: ModuleType) -> None:
    chain = Chain(engine)
    chain.run.network.run_for(0.2)
    chain.instances[1].core.close_incoming(SOURCE_ID)
    chain.run.network.run_for(5.0)
    stats = chain.instances[1].core.peer_stats(2)
    assert stats["bytes_in_flight"] == 0
    assert 0 < stats["chunks_sent"] < SIZE / 1147
    assert not chain.has_event(2, engine.EVENT_INCOMING_COMPLETE)
    chain.instances[1].core.close_outgoing(SOURCE_ID + 1)
    chain.run.network.run_for(1.0)


def test_a_waiting_relay_does_not_hold_up_other_buffers(engine: ModuleType) -> None:
    """Its source never begins to arrive; another buffer to the same peer goes through."""
    run = Run(engine, Scenario(1, LINK, (), instance_count=3))
    first, middle, last = run.instances
    middle.core.open_incoming(0, 1, bytearray(SIZE), size=SIZE, chunk_size=1000)
    last.core.open_incoming(1, 2, bytearray(SIZE), size=SIZE, chunk_size=1000)
    middle.core.open_relay(2, 2, 1, chunk_size=1000)
    memory, payload = bytearray(5000), random.Random(1).randbytes(5000)
    last.core.open_incoming(1, 3, memory, size=5000, chunk_size=1000)
    middle.core.open_outgoing(2, 3, b"", payload, chunk_size=1000)
    run.network.run_until(lambda: bool(last.events), time_limit=10.0)
    assert last.events == [(engine.EVENT_INCOMING_COMPLETE, 1, 3)]
    assert memory == payload
    assert first.core.next_timer() is None


def test_an_empty_relay_is_acknowledged_at_once(engine: ModuleType) -> None:
    run = Run(engine, Scenario(1, LINK, (), instance_count=3))
    core = run.instances[1].core
    core.open_incoming(0, 1, bytearray(), size=0, chunk_size=1000)
    core.open_relay(2, 2, 1, chunk_size=1000)
    assert core.take_events() == [
        (engine.EVENT_INCOMING_COMPLETE, 0, 1),
        (engine.EVENT_OUTGOING_ACKED, 2, 2),
    ]


def test_bad_relays_are_refused(engine: ModuleType) -> None:
    run = Run(engine, Scenario(1, LINK, (), instance_count=3))
    core = run.instances[1].core
    core.open_incoming(0, 1, bytearray(10), size=10, chunk_size=5)
    with pytest.raises(ValueError, match="buffer 9 is not being received"):
        core.open_relay(2, 2, 9, chunk_size=5)
    with pytest.raises(ValueError, match="peer 5 is not connected"):
        core.open_relay(5, 2, 1, chunk_size=5)
    with pytest.raises(ValueError, match="chunk_size must be 1 to 1148, not 1149"):
        core.open_relay(2, 2, 1, chunk_size=1149)
    core.open_relay(2, 2, 1, chunk_size=5)
    with pytest.raises(ValueError, match="buffer 2 is being sent already"):
        core.open_relay(0, 2, 1, chunk_size=5)
