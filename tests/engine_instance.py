"""An engine on the simulated network, and whole transfers between several of them.

Used by the engine's scenarios. Each call that sends is checked against the windows, each
destination lies between guard bytes that no chunk may touch.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from tests.packets import KIND_CHUNK
from tests.simnet import Address, Link, SimNetwork

GUARD = bytes(range(64))
INITIAL_WINDOW_PACKETS = 10


def address_of(index: int) -> Address:
    return (f"10.0.0.{index + 1}", 9998)


def connect(core: Any, peer: int, *, now: float = 0.0, **options: int) -> None:
    """Connect a peer with sessions made from its index: 10 + peer here, 20 + peer there."""
    values = {"local_session": 10 + peer, "remote_session": 20 + peer, "packet_size": 1200}
    core.connect_peer(peer, address_of(peer), **(values | options), now=now)


class EngineInstance:
    """One `PacketEngine` as SimNetwork drives it; checks the windows around every burst."""

    def __init__(self, engine: ModuleType, **options: int) -> None:
        self.core: Any = engine.PacketEngine(**options)
        self.events: list[tuple[Any, ...]] = []
        self.largest_flight: dict[int, int] = {}
        self._peers: dict[Address, int] = {}

    def connect(
        self, peer: int, *, local_session: int, remote_session: int, packet_size: int, now: float
    ) -> None:
        self._peers[address_of(peer)] = peer
        self.largest_flight.setdefault(peer, INITIAL_WINDOW_PACKETS * packet_size)
        self.core.connect_peer(
            peer,
            address_of(peer),
            local_session=local_session,
            remote_session=remote_session,
            packet_size=packet_size,
            now=now,
        )

    def receive_packet(self, packet: bytes, address: Address, now: float) -> None:
        self.core.receive_packet(packet, address, now)
        self.events += self.core.take_events()

    def packets_to_send(self, now: float) -> list[tuple[Address, bytes]]:
        packets: list[tuple[Address, bytes]] = self.core.packets_to_send(now)
        chunks: dict[Address, list[int]] = {}
        for address, packet in packets:
            if packet[0] == KIND_CHUNK:
                chunks.setdefault(address, []).append(len(packet))
        for address, sizes in chunks.items():
            self._check_windows(self._peers[address], sizes)
        return packets

    def next_timer(self) -> float | None:
        timer: float | None = self.core.next_timer()
        return timer

    def _check_windows(self, peer: int, sizes: list[int]) -> None:
        """The windows change only before the first packet of a burst, never within it."""
        stats = self.core.peer_stats(peer)
        flight = stats["bytes_in_flight"]
        window = stats["window"]
        assert flight <= window or (len(sizes) == 1 and flight == sizes[0]), (
            f"{flight} bytes in flight, a window of {window}"
        )
        self.largest_flight[peer] = max(self.largest_flight[peer], flight)


@dataclass(frozen=True)
class Transfer:
    """One buffer to be sent."""

    source: int
    target: int
    buffer_id: int
    size: int
    prefix_size: int = 0
    starts_at: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """All that a run depends on."""

    seed: int
    link: Link
    transfers: tuple[Transfer, ...]
    packet_size: int = 1200
    instance_count: int = 2

    @property
    def time_limit(self) -> float:
        """A bound from physics, generously: the smallest window all the way, then the rate."""
        link = self.link
        packet_count = sum(t.size // (self.packet_size - 52) + 1 for t in self.transfers)
        wire_bytes = packet_count * self.packet_size
        arriving = (1.0 - link.loss) ** 2
        queue = min(link.queue_size, wire_bytes) / link.rate if link.rate else 0.0
        round_trip = 2 * (link.delay + link.jitter) + queue + 0.002
        seconds = packet_count / 4 * round_trip / arriving
        if link.rate:
            seconds += wire_bytes / link.rate / arriving
        return 30.0 + 3.0 * seconds


@dataclass
class Run:
    """A scenario on one engine."""

    engine: ModuleType
    scenario: Scenario
    network: SimNetwork = field(init=False)
    instances: list[EngineInstance] = field(init=False)

    def __post_init__(self) -> None:
        scenario = self.scenario
        self.network = SimNetwork(seed=scenario.seed, link=scenario.link)
        self.instances = [EngineInstance(self.engine) for _ in range(scenario.instance_count)]
        self.payloads: dict[int, bytes] = {}
        self.memories: dict[int, bytearray] = {}
        self._waiting = sorted(scenario.transfers, key=lambda transfer: transfer.starts_at)
        for index, instance in enumerate(self.instances):
            self.network.attach(address_of(index), instance)
            for peer in range(scenario.instance_count):
                if peer != index:
                    instance.connect(
                        peer,
                        local_session=100 * (index + 1) + peer,
                        remote_session=100 * (peer + 1) + index,
                        packet_size=scenario.packet_size,
                        now=0.0,
                    )

    def start(self, transfer: Transfer) -> None:
        """Open both ends of one buffer."""
        chunk_size = self.engine.chunk_size_for(self.scenario.packet_size)
        payload = random_bytes(f"{self.scenario.seed} payload {transfer.buffer_id}", transfer.size)
        memory = bytearray(2 * len(GUARD) + transfer.size)
        memory[: len(GUARD)] = memory[len(GUARD) + transfer.size :] = GUARD
        self.payloads[transfer.buffer_id] = payload
        self.memories[transfer.buffer_id] = memory
        target, source = self.instances[transfer.target], self.instances[transfer.source]
        target.core.open_incoming(
            transfer.source,
            transfer.buffer_id,
            memoryview(memory)[len(GUARD) : len(GUARD) + transfer.size],
            size=transfer.size,
            chunk_size=chunk_size,
        )
        source.core.open_outgoing(
            transfer.target,
            transfer.buffer_id,
            payload[: transfer.prefix_size],
            payload[transfer.prefix_size :],
            chunk_size=chunk_size,
        )
        for instance in (target, source):
            instance.events += instance.core.take_events()

    def finish(self) -> None:
        """Run until every transfer is complete and acknowledged, and then until all is quiet.

        The last copy of a chunk that arrived before may need a probe or two until it is settled.
        """
        for transfer in self._waiting:
            self.network.run_for(max(0.0, transfer.starts_at - self.network.now))
            self.start(transfer)
        self.network.run_until(self._is_done, time_limit=self.scenario.time_limit)
        self.network.run_until(self._is_quiet, time_limit=30.0)
        self.network.run_for(1.0)

    def _is_quiet(self) -> bool:
        return all(
            instance.core.peer_stats(peer)["bytes_in_flight"] == 0
            for instance in self.instances
            for peer in instance.largest_flight
        )

    def _is_done(self) -> bool:
        arrived = sum(len(instance.events) for instance in self.instances)
        return arrived >= 2 * len(self.scenario.transfers)

    def check(self) -> None:
        """Every buffer bit-exact, exactly once, nothing beside it touched, nothing in flight."""
        expected: list[list[tuple[int, int, int]]] = [[] for _ in self.instances]
        for transfer in self.scenario.transfers:
            memory, payload = self.memories[transfer.buffer_id], self.payloads[transfer.buffer_id]
            # Without a copy of what may be large.
            is_whole = memory.startswith(payload, len(GUARD))
            is_guarded = memory.startswith(GUARD) and memory.endswith(GUARD)
            assert is_whole and is_guarded, f"buffer {transfer.buffer_id}"
            expected[transfer.target].append(
                (self.engine.EVENT_INCOMING_COMPLETE, transfer.source, transfer.buffer_id)
            )
            expected[transfer.source].append(
                (self.engine.EVENT_OUTGOING_ACKED, transfer.target, transfer.buffer_id)
            )
        for instance, events in zip(self.instances, expected, strict=True):
            assert sorted(instance.events) == sorted(events)
            for peer in instance.largest_flight:
                assert instance.core.peer_stats(peer)["bytes_in_flight"] == 0

    @property
    def bytes_retransmitted(self) -> int:
        return sum(
            instance.core.peer_stats(peer)["bytes_retransmitted"]
            for instance in self.instances
            for peer in instance.largest_flight
        )

    @property
    def retransmission_limit(self) -> float:
        """1.5 x lost bytes + one flight of every direction that carried chunks."""
        senders = {(transfer.source, transfer.target) for transfer in self.scenario.transfers}
        flights = sum(self.instances[source].largest_flight[target] for source, target in senders)
        return 1.5 * self.network.counts.lost_bytes + flights


def random_bytes(seed: str, size: int) -> bytes:
    """The same for the same seed. numpy makes 64 MB in a tenth of the time that `random` takes."""
    return np.random.default_rng(zlib.crc32(seed.encode())).bytes(size)


def run_scenario(engine: ModuleType, scenario: Scenario) -> Run:
    """Run a scenario to its end and check what every scenario must show."""
    run = Run(engine, scenario)
    try:
        run.finish()
        run.check()
    except AssertionError as error:
        raise AssertionError(f"{scenario}: {error}") from error
    return run
