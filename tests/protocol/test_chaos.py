"""Everything at once, for minutes: nothing hangs, nothing ends twice, nothing stays behind.

A claim may outlast this: a sender that failed before it announced anything has nobody to tell.
"""

from __future__ import annotations

import random
from types import ModuleType

import pytest

from tests.core_instance import CoreCluster, CoreInstance, endings
from tests.engines import engine
from tests.simnet import Link

__all__ = ["engine"]

COUNT = 3
ACTIONS = 80
# The longest that anything may take: an instance that never comes back fails what waits for it
# after (1 + retries) x ACK timeout; the rest is the time to connect and to transfer.
SETTLING_TIME = 20.0 + 40.0


class Chaos:
    """Random work, restarts and cuts; keeps what was begun by which run of which instance."""

    def __init__(self, engine: ModuleType, seed: int) -> None:
        self.rng = random.Random(seed)
        link = Link(delay=0.005, jitter=0.01, loss=0.05, duplication=0.05, rate=5_000_000.0)
        self.link = link
        self.cluster = CoreCluster(engine, count=COUNT, link=link, seed=seed)
        self.begun: list[tuple[CoreInstance, int]] = []  # who began a message or buffer, its id
        self.buffers: list[tuple[CoreInstance, int, str]] = []
        self.runs: list[CoreInstance] = list(self.cluster.instances.values())
        self.names = 0

    def send(self) -> None:
        source, target = self.rng.sample(range(COUNT), 2)
        if source not in self.cluster.instances:
            return
        self.names += 1
        name = f"n{self.names}"
        size = int(10 ** (5.7 * self.rng.random()))
        run = self.cluster.instances[source]
        buffer_id = self.cluster.send(source, target, name, self.rng.randbytes(size))
        self.begun.append((run, buffer_id))
        self.buffers.append((run, buffer_id, name))
        if self.rng.random() < 0.15:
            self.cluster.run_for(self.rng.random() * 0.2)
            run.endpoint.cancel_buffer(buffer_id, self.cluster.now)
        elif target in self.cluster.instances and self.rng.random() < 0.8:
            self.cluster.claim(target, name, source)

    def say(self) -> None:
        source, target = self.rng.sample(range(COUNT), 2)
        if source in self.cluster.instances:
            payload = bytes(self.rng.choice([10, 1000, 20_000]))
            message_id = self.cluster.say(source, target, payload)
            self.begun.append((self.cluster.instances[source], message_id))

    def restart(self) -> None:
        index = self.rng.randrange(COUNT)
        if index in self.cluster.instances:
            self.cluster.kill(index)
            self.cluster.run_for(self.rng.choice([0.0, 0.5, 5.0]))
        self.runs.append(self.cluster.boot(index))

    def cut(self) -> None:
        self.cluster.network.set_links(Link(loss=1.0))
        self.cluster.run_for(self.rng.choice([0.3, 2.0, 6.0]))
        self.cluster.network.set_links(self.link)

    def play(self) -> None:
        for _ in range(ACTIONS):
            action = self.rng.choices([self.send, self.say, self.restart, self.cut], [60, 30, 4, 3])
            action[0]()
            self.cluster.run_for(self.rng.choice([0.0, 0.01, 0.3]))
        self.cluster.run_for(SETTLING_TIME)

    def check(self) -> None:
        alive = list(self.cluster.instances.values())
        for instance in alive:
            ends = endings(instance)
            begun = [number for run, number in self.begun if run is instance]
            for number in begun:
                assert len(ends.get(number, [])) == 1, (hex(number), ends.get(number))
            assert instance.memory.used == 0
            for peer in range(COUNT):
                if instance.endpoint.is_connected(peer):
                    assert instance.engine.peer_stats(peer)["bytes_in_flight"] == 0
        assert self.cluster.is_connected()
        arrived = [key.node_id for run in self.runs for key in run.contents]
        sent = [
            name
            for run, number, name in self.buffers
            if "BufferSent" in endings(run).get(number, [])
        ]
        assert len(sent) >= 5, "too much is lost here for a test of what arrives"
        assert len(set(arrived)) == len(arrived)
        assert set(sent) <= set(arrived)


@pytest.mark.parametrize("seed", range(12))
def test_everything_ends_exactly_once(engine: ModuleType, seed: int) -> None:
    chaos = Chaos(engine, seed)
    try:
        chaos.play()
        chaos.check()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
