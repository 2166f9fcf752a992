"""Membership in simulated time: instances come, crash and restart, and the network fails, anyhow.

What must hold: nobody who is dead is kept past the timeout; once the network is whole, everybody
alive is connected to everybody alive, in the life that they have now. Some only look, in the place
of an instance that is not there: they are reached like the others, and are nobody's member. What
is told of the members' addresses may be wrong, and is put right at the end.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from comfy_cluster.protocol import PeerConnected
from tests.unit.protocol.fake_engine import Sent, address_of
from tests.unit.protocol.world import World

COUNT = 4
TIMEOUT = 3.0  # seconds: the default of INSTANCE_TIMEOUT
# Heartbeats are looked at twice a second; HELLOs of a stranger come at most every 1.2 s.
SLACK = 1.0
CONVERGENCE = 8.0  # seconds for lost connections to be noticed and made again
INSTANCES = st.integers(0, COUNT - 1)


class Membership(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.groups = [0] * COUNT  # who is in one of those hears only them
        self.loss = 0.0
        self.died_at: dict[int, float] = {}
        self.observers: set[int] = set()

    @initialize(seed=st.integers(0, 1 << 16), count=st.integers(1, COUNT))
    def begin(self, seed: int, count: int) -> None:
        self.rng = random.Random(seed)
        self.world = World(count=COUNT, seed=seed)
        self.world.is_lost = self.is_lost
        for index in range(count, COUNT):
            self.crash(index)

    def is_lost(self, packet: Sent) -> bool:
        target = next(index for index in range(COUNT) if address_of(index) == packet.target)
        is_apart = self.groups[packet.source] != self.groups[target]
        return is_apart or self.rng.random() < self.loss

    @property
    def alive(self) -> list[int]:
        return sorted(self.world.endpoints)

    @rule(index=INSTANCES)
    def crash(self, index: int) -> None:
        if index in self.world.endpoints:
            self.world.kill(index)
            self.observers.discard(index)
            self.died_at.setdefault(index, self.world.now)

    @rule(index=INSTANCES)
    def start(self, index: int) -> None:
        """Or restart: the old one is gone without a word."""
        self.world.boot(index)
        self.observers.discard(index)
        self.died_at.pop(index, None)

    @rule(index=INSTANCES)
    def look(self, index: int) -> None:
        """The instance ended without a word, if it was there, and somebody looks in its place."""
        self.world.boot(index, is_observer=True)
        self.observers.add(index)
        self.died_at.setdefault(index, self.world.now)

    @rule(groups=st.lists(st.integers(0, 2), min_size=COUNT, max_size=COUNT))
    def divide(self, groups: list[int]) -> None:
        self.groups = groups

    @precondition(lambda self: len(set(self.groups)) > 1)
    @rule()
    def heal(self) -> None:
        self.groups = [0] * COUNT

    @rule(loss=st.sampled_from([0.0, 0.05, 0.3, 0.6]))
    def lose(self, loss: float) -> None:
        self.loss = loss

    @rule(place=INSTANCES)
    def mislead(self, place: int) -> None:
        """The others are told that a member is at the address of another one."""
        self.tell((place + 1) % COUNT, address_of(place), but=place)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 2.9, 3.6, 10.0]))
    def wait(self, seconds: float) -> None:
        self.world.run_for(seconds)

    @invariant()
    def the_dead_are_not_kept(self) -> None:
        for index, died_at in self.died_at.items():
            if self.world.now > died_at + TIMEOUT + SLACK:
                assert not any(
                    self.world.endpoints[each].is_connected(index) for each in self.alive
                )

    @invariant()
    def nobody_is_told_of_observers(self) -> None:
        for index in self.observers:
            for other in self.alive:
                connected = self.world.seen(other, PeerConnected)
                assert self.boot_of(index) not in {each.boot_id for each in connected}

    def tell(self, member: int, address: tuple[str, int], *, but: int = -1) -> None:
        """As discovery does: nobody asks it for those that are connected."""
        for index in set(self.alive) - {member, but}:
            endpoint = self.world.endpoints[index]
            if not endpoint.is_connected(member):
                endpoint.add_member(member, address, self.world.now)

    def teardown(self) -> None:
        self.groups, self.loss = [0] * COUNT, 0.0
        for member in range(COUNT):
            self.tell(member, address_of(member))
        self.world.run_for(CONVERGENCE)
        for one in self.alive:
            for other in self.alive:
                if one != other:
                    info = self.world.endpoints[one].peer_info(other)
                    is_observer = other in self.observers
                    assert info.is_connected is not is_observer, (one, other)
                    assert info.is_observer is is_observer, (one, other)
                    assert info.boot_id == self.boot_of(other)

    def boot_of(self, index: int) -> int:
        settings_of: Any = self.world.endpoints[index].settings
        return int(settings_of.boot_id)


TestMembership = Membership.TestCase
TestMembership.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
