"""Path MTU probing (RFC 8899): the search, alone and over simulated paths."""

from __future__ import annotations

import random
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from tests.engine_instance import address_of
from tests.simnet import Link, SimNetwork

LINK = Link(delay=0.005, mtu=1472)


class Peers:
    """Two connected engines that may probe up to 9,000 bytes."""

    def __init__(self, engine: ModuleType, link: Link = LINK) -> None:
        self.engine = engine
        self.network = SimNetwork(seed=1, link=link)
        self.cores: list[Any] = [engine.PacketEngine() for _ in range(2)]
        for index, core in enumerate(self.cores):
            self.network.attach(address_of(index), core)
            core.connect_peer(
                1 - index,
                address_of(1 - index),
                local_session=1 + index,
                remote_session=2 - index,
                largest_packet_size=9000,
                now=0.0,
            )

    def packet_size(self, index: int = 0) -> int:
        return int(self.cores[index].peer_stats(1 - index)["packet_size"])

    def transfer(self, size: int, buffer_id: int = 7) -> None:
        """Send a buffer from 0 to 1 in chunks as large as the path is known to carry."""
        chunk_size = self.engine.chunk_size_for(self.packet_size())
        self.memory = bytearray(size)
        self.payload = random.Random(1).randbytes(size)
        self.cores[1].open_incoming(0, buffer_id, self.memory, size=size, chunk_size=chunk_size)
        self.cores[0].open_outgoing(1, buffer_id, b"", self.payload, chunk_size=chunk_size)


@pytest.mark.parametrize(
    ("mtu", "found"), [(1200, 1200), (1471, 1452), (1472, 1472), (8951, 8848), (9000, 9000)]
)
def test_the_largest_size_that_the_path_carries_is_found(
    engine: ModuleType, mtu: int, found: int
) -> None:
    peers = Peers(engine, replace(LINK, mtu=mtu))
    peers.network.run_for(3.0)
    assert [peers.packet_size(index) for index in range(2)] == [found, found]
    sizes = [event[2] for event in peers.cores[0].take_events() if event[0] == 4]
    assert sizes == sorted(sizes)
    assert sizes[-1:] == ([found] if found > 1200 else [])


def test_a_search_costs_little_and_ends(engine: ModuleType) -> None:
    peers = Peers(engine)
    peers.network.run_for(3.0)
    sent = peers.network.counts.packets
    assert sent < 40
    peers.network.run_for(500.0)
    assert peers.network.counts.packets == sent


def test_lost_probes_are_repeated(engine: ModuleType) -> None:
    peers = Peers(engine, replace(LINK, lost_packets=frozenset({0, 1})))
    peers.network.run_for(5.0)
    assert peers.packet_size() == 1472


def test_a_path_that_grew_is_found_ten_minutes_later(engine: ModuleType) -> None:
    peers = Peers(engine)
    peers.network.run_for(10.0)
    peers.network.set_links(replace(LINK, mtu=9000))
    peers.network.run_for(500.0)
    assert peers.packet_size() == 1472
    peers.network.run_for(110.0)
    assert peers.packet_size() == 9000


def test_a_black_hole_is_told_and_the_smallest_size_used(engine: ModuleType) -> None:
    """The layer above opens the buffer anew, in chunks that fit."""
    peers = Peers(engine, replace(LINK, mtu=9000))
    peers.network.run_for(3.0)
    assert peers.packet_size() == 9000
    peers.network.set_links(replace(LINK, mtu=1400))
    peers.cores[0].take_events()
    peers.transfer(200_000)
    peers.network.run_until(lambda: peers.packet_size() == 1200, time_limit=20.0)
    assert (peers.engine.EVENT_PACKET_SIZE, 1, 1200) in peers.cores[0].take_events()
    peers.cores[0].close_outgoing(7)
    peers.transfer(200_000, buffer_id=8)
    peers.network.run_until(lambda: peers.memory == peers.payload, time_limit=20.0)


def test_a_silent_peer_is_no_black_hole(engine: ModuleType) -> None:
    peers = Peers(engine)
    peers.network.run_for(3.0)
    peers.network.set_links(replace(LINK, loss=1.0))
    peers.transfer(200_000)
    peers.network.run_for(20.0)
    assert peers.packet_size() == 1472
    peers.network.set_links(LINK)
    peers.network.run_until(lambda: peers.memory == peers.payload, time_limit=20.0)
    peers.network.run_for(5.0)
    assert peers.packet_size() == 1472


def test_a_probe_gives_the_first_round_trip(engine: ModuleType) -> None:
    peers = Peers(engine)
    peers.network.run_for(3.0)
    assert peers.cores[0].peer_stats(1)["smoothed_rtt"] == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("largest", [0, -5, 1199, 1200])
def test_without_a_larger_size_nothing_is_probed(engine: ModuleType, largest: int) -> None:
    core = engine.PacketEngine()
    core.connect_peer(
        1, address_of(1), local_session=1, remote_session=2, largest_packet_size=largest, now=0.0
    )
    assert core.next_timer() is None


def test_a_size_that_no_packet_can_have_is_refused(engine: ModuleType) -> None:
    with pytest.raises(ValueError, match="largest_packet_size is at most 65507, not 65508"):
        engine.PacketEngine().connect_peer(
            1, address_of(1), local_session=1, remote_session=2, largest_packet_size=65_508, now=0.0
        )


def test_both_engines_search_alike(both_engines: tuple[ModuleType, ModuleType]) -> None:
    rng = random.Random(4)
    for _ in range(200):
        start, largest = rng.choice([1200, 1472, 8952]), rng.choice([0, 1300, 1472, 9000, 65_507])
        searches = [engine.PathMtu(start, largest, 1.0) for engine in both_engines]
        now = 1.0
        for counter in range(60):
            now += rng.choice([0.0, 0.05, 0.2, 700.0])
            choice = rng.randrange(4)
            outcomes = []
            for search in searches:
                outcome: list[object] = [search.on_timer(now)]
                if search.probe_due_at() <= now:
                    search.on_probe_sent(counter, 0.15, now)
                elif choice == 0:
                    outcome.append(search.on_acked(counter - 1, now))
                elif choice == 1:
                    search.verify(now)
                outcome += [search.packet_size, search.probe_size, search.due_at]
                outcomes.append(outcome)
            assert outcomes[0] == outcomes[1]
