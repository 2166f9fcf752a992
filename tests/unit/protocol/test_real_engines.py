"""The core over each real engine on a simulated network: the fake engine's promises hold there."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest

from comfy_cluster.protocol import (
    BufferArrived,
    BufferSent,
    Endpoint,
    Event,
    MessageDelivered,
    MessageReceived,
    PeerLost,
)
from comfy_cluster.wire import MessageType
from tests.engines import engine
from tests.simnet import Address, Link, SimNetwork
from tests.unit.protocol.fake_engine import address_of, key_of, payload_of, settings_of

__all__ = ["engine"]


class Core:
    """An endpoint and its engine, driven as the control thread drives them."""

    def __init__(self, module: ModuleType, index: int, seed: int) -> None:
        self.engine: Any = module.PacketEngine()
        self.endpoint = Endpoint(
            settings_of(index),
            self.engine,
            rng=random.Random(f"{seed} {index}"),
            allocate=bytearray,
            now=0.0,
        )
        self.endpoint.add_member(1 - index, address_of(1 - index), 0.0)
        self.events: list[Event] = []

    def receive_packet(self, packet: bytes, address: Address, now: float) -> None:
        self.engine.receive_packet(packet, address, now)
        self._turn(now)

    def packets_to_send(self, now: float) -> list[tuple[Address, bytes]]:
        self._turn(now)
        packets: list[tuple[Address, bytes]] = self.engine.packets_to_send(now)
        self._turn(now)
        return packets

    def next_timer(self) -> float | None:
        timers = (self.engine.next_timer(), self.endpoint.next_timer())
        return min((timer for timer in timers if timer is not None), default=None)

    def _turn(self, now: float) -> None:
        self.endpoint.handle_engine_events(now)
        self.endpoint.handle_timers(now)
        while (event := self.endpoint.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, BufferArrived):
                content = memoryview(event.memory)[: event.size]
                if payload_of(bytes(content)).digest() == event.digest:
                    self.endpoint.confirm_buffer(event.buffer_id, now)

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)


def connect(module: ModuleType, link: Link, seed: int) -> tuple[SimNetwork, Core, Core]:
    network = SimNetwork(seed=seed, link=link)
    cores = Core(module, 0, seed), Core(module, 1, seed)
    for index, core in enumerate(cores):
        network.attach(address_of(index), core)
    network.run_until(
        lambda: cores[0].endpoint.is_connected(1) and cores[1].endpoint.is_connected(0),
        time_limit=20.0,
    )
    return network, cores[0], cores[1]


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_messages_and_buffers_arrive_once_and_intact(
    engine: ModuleType, loss: float, seed: int
) -> None:
    link = Link(delay=0.01, jitter=0.002, loss=loss, duplication=0.05)
    network, a, b = connect(engine, link, seed)
    rng = random.Random(seed)
    contents = {f"n{n}": rng.randbytes(size) for n, size in enumerate([0, 10, 3_000, 200_000])}
    for name, content in contents.items():
        payload = payload_of(content, prefix_size=min(len(content), 64))
        a.endpoint.send_buffer(
            1,
            key_of(name),
            payload,
            digest=payload.digest(),
            message_type=MessageType.DISTRIBUTE_BUFFER_BROADCAST,
            now=network.now,
        )
    for size in (0, 1_000, 50_000):
        a.endpoint.send_message(
            1, MessageType.EXECUTE_WORKFLOW, rng.randbytes(size), now=network.now
        )
    network.run_until(
        lambda: a.count(BufferSent) == len(contents) and a.count(MessageDelivered) == 3,
        time_limit=60.0,
    )
    arrived = {
        e.key.node_id: bytes(e.memory)[: e.size] for e in b.events if type(e) is BufferArrived
    }
    assert arrived == contents
    assert b.count(BufferArrived) == len(contents) and b.count(MessageReceived) == 3
    assert not a.count(PeerLost) and not b.count(PeerLost)


def test_killed_peer_is_lost_in_time(engine: ModuleType) -> None:
    network, a, _ = connect(engine, Link(delay=0.005), 1)
    network.run_for(2.0)
    network.detach(address_of(1))
    died_at = network.now
    network.run_until(lambda: a.count(PeerLost) == 1, time_limit=10.0)
    assert network.now - died_at <= 3.0 + 0.6


def test_goodbye_leaves_with_the_last_packets(engine: ModuleType) -> None:
    network, a, b = connect(engine, Link(delay=0.005), 1)
    b.endpoint.close(network.now)
    network.run_until(lambda: a.count(PeerLost) == 1, time_limit=1.0)
