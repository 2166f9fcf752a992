"""SimNetwork: a network in virtual time, for tests that need loss, delay and reordering.

How it works. Instances are attached under addresses. `step()` jumps to the earliest of the next
arrival and the next timer, delivers what has arrived, and lets every instance that is due send.
Each direction between two addresses is a `Link` with a random stream of its own, so a run is a
pure function of the scenario and the seed. No socket, no clock, no sleep.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Address = tuple[str, int]

NEVER = float("inf")
STUCK_STEPS = 10_000  # steps without any virtual time passing that count as a livelock
STUCK_PACKETS = 200_000  # packets that one instance may send at one moment


class SimInstance(Protocol):
    """What can be attached: an engine, or a whole core around one."""

    def receive_packet(self, packet: bytes, address: Address, now: float) -> None: ...

    def packets_to_send(self, now: float) -> list[tuple[Address, bytes]]: ...

    def next_timer(self) -> float | None: ...


@dataclass(frozen=True)
class Link:
    """One direction of a path. Times in seconds, sizes in bytes of UDP payload."""

    delay: float = 0.0
    jitter: float = 0.0  # each packet takes up to so much longer: this reorders
    rate: float | None = None  # bytes a second; None: as fast as it comes
    queue_size: int = 262_144  # bytes that wait for the rate; what comes on top is dropped
    loss: float = 0.0
    lost_packets: frozenset[int] = frozenset()  # these are lost too, counted from 0
    duplication: float = 0.0
    corruption: float = 0.0  # one byte is changed
    truncation: float = 0.0  # cut at a random place
    mtu: int = 65_507


@dataclass
class LinkCounts:
    """What happened on one direction so far."""

    packets: int = 0
    bytes: int = 0
    lost_packets: int = 0  # by chance, script, queue or MTU, or damaged on the way
    lost_bytes: int = 0
    duplicated_packets: int = 0


class Direction:
    """The state of a `Link`: its queue, its chance, its counts."""

    def __init__(self, link: Link, rng: random.Random) -> None:
        self.link = link
        self.counts = LinkCounts()
        self._rng = rng
        self._busy_until = 0.0

    def arrivals(self, packet: bytes, now: float) -> list[tuple[float, bytes]]:
        """Send a packet. Return when it arrives, and what of it: not at all, once or twice."""
        number = self.counts.packets
        self.counts.packets += 1
        self.counts.bytes += len(packet)
        if self._is_lost(number, packet, now):
            self._count_loss(packet)
            return []
        left_at = now
        if self.link.rate is not None:
            left_at = self._busy_until = max(now, self._busy_until) + len(packet) / self.link.rate
        arrivals = [(self._arrival(left_at), self._damaged(packet))]
        if self._happens(self.link.duplication):
            self.counts.duplicated_packets += 1
            arrivals.append((self._arrival(left_at), packet))
        return arrivals

    def _is_lost(self, number: int, packet: bytes, now: float) -> bool:
        link = self.link
        if len(packet) > link.mtu or number in link.lost_packets or self._happens(link.loss):
            return True
        if link.rate is None:
            return False
        waiting = (self._busy_until - now) * link.rate
        return waiting > 0.0 and waiting + len(packet) > link.queue_size

    def _arrival(self, left_at: float) -> float:
        late = self._rng.random() * self.link.jitter if self.link.jitter else 0.0
        return left_at + self.link.delay + late

    def _damaged(self, packet: bytes) -> bytes:
        if self._happens(self.link.truncation):
            self._count_loss(packet)
            return packet[: self._rng.randrange(len(packet))]
        if self._happens(self.link.corruption):
            self._count_loss(packet)
            place = self._rng.randrange(len(packet))
            changed = packet[place] ^ self._rng.randrange(1, 256)
            return packet[:place] + bytes([changed]) + packet[place + 1 :]
        return packet

    def _count_loss(self, packet: bytes) -> None:
        self.counts.lost_packets += 1
        self.counts.lost_bytes += len(packet)

    def _happens(self, probability: float) -> bool:
        return probability > 0.0 and self._rng.random() < probability


class SimNetwork:
    """The network and its virtual clock `now`."""

    def __init__(self, *, seed: int, link: Link | None = None) -> None:
        self.seed = seed
        self.now = 0.0
        self.steps = 0
        self.wake_ups: dict[Address, int] = {}  # how often each instance was asked to send
        self._link = link or Link()
        self._instances: dict[Address, SimInstance] = {}
        self._directions: dict[tuple[Address, Address], Direction] = {}
        self._arrivals: list[tuple[float, int, Address, Address, bytes]] = []
        self._numbers = itertools.count()
        self._steps_here = 0

    def attach(self, address: Address, instance: SimInstance) -> None:
        """Put an instance on the network; it replaces the one that was there."""
        self._instances[address] = instance
        self.wake_ups.setdefault(address, 0)

    def detach(self, address: Address) -> None:
        """Take an instance off, as a killed process is: packets to it vanish."""
        del self._instances[address]

    def direction(self, source: Address, target: Address) -> Direction:
        """Return one direction of a path, for its counts."""
        key = (source, target)
        if key not in self._directions:
            rng = random.Random(f"{self.seed} {source} {target}")
            self._directions[key] = Direction(self._link, rng)
        return self._directions[key]

    def share_link(self, pair: tuple[Address, Address], other: tuple[Address, Address]) -> None:
        """Let packets between `other` wait in the queue of those between `pair`, from now on."""
        self._directions[other] = self.direction(*pair)

    def set_link(self, source: Address, target: Address, link: Link) -> None:
        """Change one direction from now on."""
        self.direction(source, target).link = link

    def set_links(self, link: Link) -> None:
        """Change every direction from now on."""
        self._link = link
        for direction in self._directions.values():
            direction.link = link

    @property
    def counts(self) -> LinkCounts:
        """The counts of all directions together."""
        total = LinkCounts()
        for direction in self._directions.values():
            for name, value in vars(direction.counts).items():
                setattr(total, name, getattr(total, name) + value)
        return total

    def inject(self, packet: bytes, *, source: Address, target: Address) -> None:
        """Deliver a packet now that no instance sent."""
        heapq.heappush(self._arrivals, (self.now, next(self._numbers), source, target, packet))

    def step(self) -> bool:
        """Jump to what happens next. Return False when nothing ever will."""
        due = self._next_moment()
        if due is not None:
            self._happen(due)
        return due is not None

    def _happen(self, moment: float) -> None:
        self._advance(moment)
        while self._arrivals and self._arrivals[0][0] <= self.now:
            _, _, source, target, packet = heapq.heappop(self._arrivals)
            if target in self._instances:
                self._instances[target].receive_packet(packet, source, self.now)
        for address, instance in list(self._instances.items()):
            timer = instance.next_timer()
            if timer is not None and timer <= self.now:
                self._let_send(address, instance)

    def run_until(self, condition: Callable[[], bool], *, time_limit: float) -> None:
        """Step until the condition holds; AssertionError after `time_limit` virtual seconds."""
        end = self.now + time_limit
        while not condition():
            assert self.step(), f"seed {self.seed}: at {self.now:.3f} s nothing will ever happen"
            assert self.now <= end, f"seed {self.seed}: not done after {time_limit:.3f} s"

    def run_for(self, seconds: float) -> None:
        """Step through so much virtual time."""
        end = self.now + seconds
        while (due := self._next_moment()) is not None and due <= end:
            self._happen(due)
        self._advance(end)

    def _next_moment(self) -> float | None:
        # A plain loop: most of the time of a long simulation is spent here.
        moment = self._arrivals[0][0] if self._arrivals else NEVER
        for instance in self._instances.values():
            timer = instance.next_timer()
            if timer is not None and timer < moment:
                moment = timer
        return None if moment == NEVER else max(moment, self.now)

    def _advance(self, moment: float) -> None:
        self.steps += 1
        self._steps_here = self._steps_here + 1 if moment <= self.now else 0
        assert self._steps_here < STUCK_STEPS, f"seed {self.seed}: livelock at {self.now:.6f} s"
        self.now = max(self.now, moment)

    def _let_send(self, address: Address, instance: SimInstance) -> None:
        self.wake_ups[address] += 1
        count = 0
        while packets := instance.packets_to_send(self.now):
            count += len(packets)
            assert count < STUCK_PACKETS, f"seed {self.seed}: {address} sends without end"
            for target, packet in packets:
                for arrival, content in self.direction(address, target).arrivals(packet, self.now):
                    item = (arrival, next(self._numbers), address, target, content)
                    heapq.heappush(self._arrivals, item)
