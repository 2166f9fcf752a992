"""Differential test: the same operations on both engines give the same bytes, to the last one.

How it works. A `Pair` holds one engine of each kind; each call goes to both, and results (or the
types of exceptions) must be equal. Two pairs talk to each other through a pool of packets that are
delivered in any order, twice, damaged, or never, while buffers and connections come and go.
"""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest

from tests import packets
from tests.hostile import Target, mutated, nasty_packets
from tests.simnet import Address

SEED_GROUPS = 30
SEEDS_PER_GROUP = 8
OPERATIONS = 250
SETTLING_OPERATIONS = 150
EVENT_INCOMING_COMPLETE = 2
ONE_SIDED = {"IS_COMPILED", "HAS_LOOPS", "HAS_CEILING"}
STUN_IDS = [bytes([number] * 12) for number in range(10)]
ADDRESSES: list[Address] = [("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.3", 3), ("::1", 4)]


class Pair:
    """Both engines in one place."""

    def __init__(self, engines: tuple[ModuleType, ModuleType], **options: int) -> None:
        self.cores: list[Any] = [engine.PacketEngine(**options) for engine in engines]
        self.memories: list[tuple[bytearray, bytearray]] = []

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call both. Return what both returned, or the type of what both raised."""
        outcomes: list[Any] = []
        for core in self.cores:
            try:
                outcomes.append(getattr(core, name)(*arguments, **options))
            except (ValueError, TypeError, OverflowError, BufferError) as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1], (name, arguments, options, outcomes)
        return outcomes[0]

    def open_incoming(self, peer: int, buffer_id: int, size: int, chunk_size: int) -> None:
        memories = bytearray(max(size, 0)), bytearray(max(size, 0))
        outcomes: list[Any] = []
        for core, memory in zip(self.cores, memories, strict=True):
            try:
                core.open_incoming(peer, buffer_id, memory, size=size, chunk_size=chunk_size)
                outcomes.append(None)
            except ValueError as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1]
        self.memories.append(memories)

    def check(self, peers: range) -> None:
        for peer in peers:
            self.call("peer_stats", peer)
        self.call("stats")
        self.call("next_timer")
        for ours, theirs in self.memories:
            assert ours == theirs


class Theatre:
    """Two pairs, the packets between them, and everything that may happen."""

    def __init__(self, engines: tuple[ModuleType, ModuleType], seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = self.rng.random() * 1000
        options = {
            "burst_size": self.rng.choice([1, 8, 174]),
            "receive_capacity": self.rng.choice([50_000, 1 << 20]),
            "strangers_per_second": self.rng.choice([0, 3]),
        }
        self.pairs = [Pair(engines, **options) for _ in range(2)]
        self.pool: list[tuple[int, Address, bytes]] = []
        self.history: list[tuple[int, Address, bytes]] = []
        self.next_buffer_id = 0
        self.completed = 0
        self.packet_size = 1200
        self.connect_both()

    # What may happen

    def connect_both(self) -> None:
        """Connect the two pairs as the handshake would, with new sessions."""
        sessions = self.rng.sample(range(1, 2**32), 2)
        self.packet_size = self.rng.choice([1200, 1472, 8900])
        for index, pair in enumerate(self.pairs):
            pair.call(
                "connect_peer",
                1 - index,
                ADDRESSES[1 - index],
                local_session=sessions[index],
                remote_session=sessions[1 - index],
                packet_size=self.packet_size,
                now=self.now,
            )
            pair.call("allow_address", ADDRESSES[1 - index])

    def connect_oddly(self) -> None:
        rng = self.rng
        self.pair.call(
            "connect_peer",
            rng.choice([-1, 2, 3, 3, 4095, 4096]),
            rng.choice(ADDRESSES),
            local_session=rng.choice([1, 2, 3]),
            remote_session=rng.randrange(2**32),
            packet_size=rng.choice([1199, 1200, 1472, 65_507, 65_508]),
            now=self.now,
        )

    def disconnect(self) -> None:
        self.pair.call("disconnect_peer", self.rng.randrange(5))

    def open_transfer(self) -> None:
        """Open a buffer at both ends; sometimes the receiving end comes late or never."""
        rng = self.rng
        source = rng.randrange(2)
        buffer_id = self.next_buffer_id
        self.next_buffer_id += 1
        limit = self.packet_size - 52
        chunk_size = rng.choice([limit, limit, limit, rng.randrange(1, limit + 1)])
        size = min(rng.choice([0, 1, chunk_size, int(10 ** (5.3 * rng.random()))]), 80 * chunk_size)
        payload = rng.randbytes(size)
        split = rng.choice([0, min(64, size), size])
        if rng.random() < 0.95:
            self.pairs[1 - source].open_incoming(source, buffer_id, size, chunk_size)
        self.pairs[source].call(
            "open_outgoing",
            1 - source,
            buffer_id,
            payload[:split],
            payload[split:],
            chunk_size=chunk_size,
        )

    def open_oddly(self) -> None:
        rng = self.rng
        peer, buffer_id = rng.randrange(4), rng.randrange(self.next_buffer_id + 2)
        chunk_size = rng.choice([0, -1, 1, 1148, 1149, 65_455, 65_456])
        size = rng.randrange(2000)
        self.pair.open_incoming(peer, buffer_id, size, chunk_size)
        self.pair.call("open_outgoing", peer, buffer_id, b"", bytes(size), chunk_size=chunk_size)
        self.pair.call("open_incoming", peer, 10**6, bytes(5), size=5, chunk_size=5)
        self.pair.call("open_incoming", peer, 10**6, bytearray(4), size=5, chunk_size=5)
        self.pair.call("open_incoming", peer, 10**6, bytearray(4), size=-1, chunk_size=5)

    def open_relay(self) -> None:
        """Pass on one of the buffers, to the other pair or to a peer that answers nothing."""
        rng = self.rng
        peer, source_id = rng.choice([0, 1, 2, 3]), rng.randrange(self.next_buffer_id + 1)
        buffer_id = self.next_buffer_id
        self.next_buffer_id += 1
        for pair in self.pairs:
            pair.call("open_relay", peer, buffer_id, source_id, chunk_size=rng.randrange(1, 1200))

    def close_one(self) -> None:
        name = self.rng.choice(["close_outgoing", "close_incoming"])
        self.pair.call(name, self.rng.randrange(self.next_buffer_id + 1))

    def send_something(self) -> None:
        rng = self.rng
        payload = rng.randbytes(rng.choice([0, 1, 100, 1168, 1169]))
        if rng.random() < 0.5:
            self.pair.call("send_hello", rng.choice(ADDRESSES), payload)
        else:
            self.pair.call("send_message", rng.randrange(4), payload)

    def change_addresses(self) -> None:
        name = self.rng.choice(["allow_address", "disallow_address"])
        self.pair.call(name, self.rng.choice(ADDRESSES))

    def exchange_stun(self) -> None:
        """Ids are waited for or no more; packets with them come, more than are kept."""
        rng = self.rng
        name = rng.choice(["expect_stun", "expect_stun", "forget_stun"])
        self.pair.call(name, rng.choice([*STUN_IDS, b"", bytes(13)]))
        for _ in range(rng.choice([1, 5, 20])):
            packet = packets.stun(
                rng.choice(STUN_IDS),
                bytes(rng.choice([0, 12, 528, 529])),
                kind=rng.randrange(0x500),
            )
            damaged = mutated(rng, packet) if rng.random() < 0.2 else packet
            self.receive(rng.randrange(2), rng.choice(ADDRESSES), damaged)

    def pass_time(self) -> None:
        """A moment, a long silence, or until the next timer."""
        rng = self.rng
        timers = [pair.call("next_timer") for pair in self.pairs]
        ahead = [timer for timer in timers if timer is not None and timer > self.now]
        if ahead and rng.random() < 0.6:
            self.now = min(ahead)
        else:
            self.now += rng.choice([0.0, 1e-6, 0.0005, 0.01, 0.1, 2.0]) * rng.random()

    def send_packets(self) -> None:
        for index, pair in enumerate(self.pairs):
            limit = self.rng.choice([0, 0, 1, 3, 500])
            for address, packet in pair.call("packets_to_send", self.now, limit=limit):
                if address in ADDRESSES[:2]:
                    self.pool.append((ADDRESSES.index(address), ADDRESSES[index], packet))

    def deliver(self) -> None:
        """Deliver some of the pool, mostly in order; lose some, repeat some, damage some."""
        rng = self.rng
        for _ in range(min(len(self.pool), rng.choice([1, 5, 30, 200]))):
            place = 0 if rng.random() < 0.8 else rng.randrange(len(self.pool))
            target, source, packet = self.pool.pop(place)
            self.history.append((target, source, packet))
            chance = rng.random()
            if chance < 0.08:
                continue
            if chance < 0.12:
                self.receive(target, source, mutated(rng, packet))
            if chance < 0.15:
                source = rng.choice(ADDRESSES)
            self.receive(target, source, packet)
            if chance > 0.95:
                self.receive(target, source, packet)
        del self.history[:-200]

    def deliver_hostile(self) -> None:
        rng = self.rng
        target = Target(rng.randrange(4), rng.randrange(self.next_buffer_id + 1), 5, 1148)
        for packet in nasty_packets(rng, target, count=10):
            self.receive(rng.randrange(2), rng.choice(ADDRESSES), packet)
        for place, source, packet in rng.choices(self.history, k=10) if self.history else []:
            self.receive(place, source, mutated(rng, packet) if rng.random() < 0.5 else packet)

    # How it is checked

    @property
    def pair(self) -> Pair:
        return self.rng.choice(self.pairs)

    def receive(self, target: int, source: Address, packet: bytes) -> None:
        self.pairs[target].call("receive_packet", packet, source, self.now)

    def take_events(self) -> None:
        for pair in self.pairs:
            events = pair.call("take_events")
            self.completed += sum(event[0] == EVENT_INCOMING_COMPLETE for event in events)

    def check(self) -> None:
        for pair in self.pairs:
            pair.check(range(5))

    def play(self) -> None:
        flow = [self.send_packets, self.deliver, self.pass_time]
        rare = [
            self.open_transfer,
            self.open_transfer,
            self.open_relay,
            self.send_something,
            self.close_one,
            self.take_events,
            self.deliver_hostile,
            self.open_oddly,
            self.change_addresses,
            self.exchange_stun,
            self.connect_oddly,
        ]
        for _ in range(OPERATIONS):
            self.rng.choice(flow if self.rng.random() < 0.75 else rare)()
            if self.rng.random() < 0.01:
                self.rng.choice([self.connect_both, self.disconnect])()
            self.check()
        for _ in range(SETTLING_OPERATIONS):
            self.rng.choice(flow)()
        self.take_events()
        self.check()


@pytest.mark.parametrize("group", range(SEED_GROUPS))
def test_same_operations_give_the_same_bytes(
    both_engines: tuple[ModuleType, ModuleType], group: int
) -> None:
    completed = 0
    for seed in range(group * SEEDS_PER_GROUP, (group + 1) * SEEDS_PER_GROUP):
        theatre = Theatre(both_engines, seed)
        try:
            theatre.play()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        completed += theatre.completed
    assert completed >= 10, "the operations no longer reach the end of a transfer"


def test_both_engines_have_the_same_public_names(
    both_engines: tuple[ModuleType, ModuleType],
) -> None:
    """Constants are equal too, but for those that say what only one of them has."""
    twin, compiled = both_engines
    for name in twin.__all__:
        ours, theirs = getattr(twin, name), getattr(compiled, name)
        if isinstance(ours, int | float | tuple) and name not in ONE_SIDED:
            assert ours == theirs, name
    assert (twin.IS_COMPILED, compiled.IS_COMPILED) == (False, True)
    twin_engine = {name for name in dir(twin.PacketEngine) if not name.startswith("_")}
    assert twin_engine <= set(dir(compiled.PacketEngine))


def test_counters_have_the_same_names_in_the_same_order(
    both_engines: tuple[ModuleType, ModuleType],
) -> None:
    assert [list(engine.PacketEngine().stats()) for engine in both_engines] == [
        list(both_engines[0].COUNTERS)
    ] * 2
