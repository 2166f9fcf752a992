"""What is true of an endpoint as a whole: what it imports, what it costs, what it leaves."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from comfy_cluster.protocol import BufferArrived, MessageReceived, PeerConnected
from comfy_cluster.wire import MessageType
from tests.unit.protocol.world import World


def test_protocol_and_wire_import_no_torch_socket_or_thread() -> None:
    code = (
        "import sys, comfy_cluster.protocol, comfy_cluster.wire\n"
        "assert 'torch' not in sys.modules and 'asyncio' not in sys.modules\n"
        "assert 'comfy_cluster.transport' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_idle_instances_wake_up_once_an_interval() -> None:
    world = World(count=8)
    world.connect()
    before, sent = dict(world.wake_ups), len(world.log)
    world.run_for(60.0)
    for index in range(8):
        assert world.wake_ups[index] - before[index] <= 60 / 0.5 + 2
    assert len(world.log) - sent <= 8 * 7 * (60 / 0.5 + 2)
    assert {packet.message_type for packet in world.log[sent:]} == {MessageType.HEARTBEAT}
    assert max(len(packet.payload) for packet in world.log[sent:]) < 32


def test_endpoint_without_peers_never_wakes_up() -> None:
    world = World(count=1)
    assert world.endpoints[0].next_timer() is None


def test_thousands_of_messages_leave_nothing_behind() -> None:
    world = World()
    world.connect()
    for number in range(3_000):
        world.endpoints[number % 2].send_message(
            1 - number % 2, MessageType.EXECUTION_PROGRESS, b"x" * (number % 50), now=world.now
        )
        if number % 20 == 0:
            world.run_for(0.02)
            world.log.clear()
    world.run_for(1.0)
    for index in (0, 1):
        assert len(world.seen(index, MessageReceived)) == 1_500
        assert world.is_idle(index)
        assert len(world.endpoints[index]._timers._heap) < 200


@pytest.mark.parametrize("seed", range(8))
def test_instances_that_come_and_go_leave_nothing_behind_and_nobody_waiting(seed: int) -> None:
    """Every handle of the layer above ends: one outcome for each thing that was started."""
    rng = random.Random(seed)
    world = World(count=3, seed=seed)
    world.connect()
    started: dict[int, list[int]] = {index: [] for index in range(3)}
    world.is_lost = lambda packet: not packet.buffer_id and rng.random() < 0.1
    for number in range(60):
        source, target = rng.sample(range(3), 2)
        if source in world.endpoints:
            started[source].append(world.send(source, target, f"n{number}", bytes(2_000)))
            world.endpoints[source].send_message(
                target, MessageType.FREE_MEMORY, bytes(rng.choice([5, 3_000])), now=world.now
            )
        if rng.random() < 0.1:
            index = rng.randrange(3)
            if index in world.endpoints:
                world.kill(index)
            else:
                world.boot(index)
                started[index] = []
        world.run_for(rng.choice([0.0, 0.01, 0.5]))
        answer_arrivals(world)
    world.is_lost = lambda packet: False
    for _ in range(60):
        world.run_for(1.0)
        answer_arrivals(world)
    for index, endpoint in world.endpoints.items():
        ended = [getattr(event, "buffer_id", None) for event in world.events[index]]
        assert all(ended.count(buffer_id) == 1 for buffer_id in started[index])
        leftovers = world.bookkeeping(index)
        assert not any(leftovers.values()), leftovers
        assert endpoint.members == [n for n in range(3) if n != index]


def answer_arrivals(world: World) -> None:
    for index, endpoint in world.endpoints.items():
        for event in world.seen(index, BufferArrived):
            endpoint.confirm_buffer(event.buffer_id, world.now)
            endpoint.release_buffer(event.buffer_id, world.now)
        world.events[index] = [
            event for event in world.events[index] if not isinstance(event, BufferArrived)
        ]


def test_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        world = World(count=3, seed=5)
        world.connect()
        world.send(0, 1, "node", bytes(5_000))
        world.run_for(1.0)
        runs.append([(packet.source, packet.target, packet.payload) for packet in world.log])
        assert len(world.seen(0, PeerConnected)) == 2
    assert runs[0] == runs[1]
