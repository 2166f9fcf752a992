"""What an instance does with beacons: a LAN in simulated time, without sockets."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from comfy_cluster.discovery.base import Address
from comfy_cluster.discovery.beacons import (
    COMPLETE_DELAY,
    FIRST_DELAYS,
    FORMING_DELAY,
    LARGEST_TROUBLES,
    Beacons,
    Conflict,
    Found,
    Identity,
)
from comfy_cluster.wire import LARGEST_BEACON, Beacon

KEY = "k" * 16
PORT = 9998


def identity(index: int, **changed: object) -> Identity:
    made = Identity("default", index, 4, boot_id=100 + index, port=PORT, key=KEY)
    return replace(made, **changed)  # type: ignore[arg-type]


def address_of(index: int) -> Address:
    return f"10.0.0.{index + 1}", PORT


@dataclass
class Lan:
    """Everybody hears everybody, after a delay; HELLOs to a direct port too."""

    delay: float = 0.001
    loss: float = 0.0
    seed: int = 0
    now: float = 0.0
    hosts: dict[str, Beacons] = field(default_factory=dict)
    found: dict[tuple[str, int], float] = field(default_factory=dict)
    """By host and peer: when."""
    conflicts: list[tuple[str, Conflict]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.waiting: list[tuple[float, str, str, bytes]] = []

    def start(self, hostname: str, own: Identity) -> Beacons:
        self.hosts[hostname] = Beacons(own, self.now)
        return self.hosts[hostname]

    def run_until(self, end: float) -> None:
        while True:
            due = [(each.send_at, name) for name, each in self.hosts.items()]
            due += [(at, name) for at, name, _, _ in self.waiting]
            if not due or min(due)[0] > end:
                break
            self.now = max(self.now, min(due)[0])
            self._deliver()
            for name, each in self.hosts.items():
                if each.send_at <= self.now:
                    self._broadcast(name, each.next_beacon(self.now))
        self.now = end

    def _broadcast(self, sender: str, datagram: bytes) -> None:
        for name in self.hosts:
            if name == sender or self.rng.random() >= self.loss:
                self.waiting.append((self.now + self.delay, name, sender, datagram))

    def _deliver(self) -> None:
        here = [each for each in self.waiting if each[0] <= self.now]
        self.waiting = [each for each in self.waiting if each[0] > self.now]
        for _, name, sender, datagram in here:
            if name in self.hosts:
                meaning = self.hosts[name].on_datagram(datagram, (sender, 9997), self.now)
                self._act_on(name, meaning)

    def _act_on(self, name: str, meaning: Found | Conflict | None) -> None:
        if isinstance(meaning, Found):
            self.found[name, meaning.peer] = self.now
            # The HELLO that follows: by it the one that was found finds the finder.
            own = self.hosts[name]._identity
            finder = own.instance_index
            if (other := self.hosts.get(meaning.address[0])) is not None:
                back = other.on_heard(finder, (name, PORT), self.now, is_observer=own.is_observer)
                if back is not None:
                    self.found[meaning.address[0], finder] = self.now
        elif isinstance(meaning, Conflict):
            self.conflicts.append((name, meaning))


def heard(beacons: Beacons, own: Identity, *, at: str = "10.0.0.9", now: float = 1.0) -> object:
    """What a beacon of `own` means."""
    datagram = Beacons(own, 0.0).next_beacon(now)
    return beacons.on_datagram(datagram, (at, 9997), now)


@pytest.mark.parametrize("count", [2, 4, 8, 64])
def test_all_find_each_other_at_once_when_the_last_one_starts(count: int) -> None:
    lan = Lan()
    for index in range(count):
        lan.run_until(index * 0.37)
        lan.start(f"10.0.0.{index + 1}", identity(index, instance_count=count))
    started = lan.now
    lan.run_until(started + 0.1)
    assert len(lan.found) == count * (count - 1)
    assert not lan.conflicts


@pytest.mark.parametrize("seed", range(10))
def test_lost_beacons_cost_a_second(seed: int) -> None:
    lan = Lan(loss=0.5, seed=seed)
    for index in range(4):
        lan.start(f"10.0.0.{index + 1}", identity(index))
    lan.run_until(8.0)
    assert len(lan.found) == 12


def test_beacons_come_more_and_more_rarely() -> None:
    beacons = Beacons(identity(0), 0.0)
    now, gaps = 0.0, []
    for _ in range(len(FIRST_DELAYS) + 2):
        beacons.next_beacon(now)
        gaps.append(beacons.send_at - now)
        now = beacons.send_at
    assert gaps == pytest.approx([*FIRST_DELAYS, FORMING_DELAY, FORMING_DELAY])
    for peer in (1, 2, 3):
        beacons.on_connected(peer)
    beacons.next_beacon(now)
    assert beacons.send_at - now == COMPLETE_DELAY
    beacons.on_lost(2, now + 1)
    assert beacons.send_at <= now + 1 + FORMING_DELAY


def test_the_address_is_the_sender_s_or_the_one_it_tells() -> None:
    beacons = Beacons(identity(0), 0.0)
    assert heard(beacons, identity(1)) == Found(1, ("10.0.0.9", PORT))
    told = identity(2, hostname="192.0.2.7", port=12)
    assert heard(beacons, told) == Found(2, ("192.0.2.7", 12))


def test_who_is_heard_on_two_networks_is_tried_on_both_in_turn() -> None:
    beacons = Beacons(identity(0), 0.0)
    assert heard(beacons, identity(1), at="10.0.0.2", now=1.0) == Found(1, ("10.0.0.2", PORT))
    assert heard(beacons, identity(1), at="10.1.0.2", now=1.1) is None
    assert heard(beacons, identity(1), at="10.0.0.2", now=2.5) is None
    assert heard(beacons, identity(1), at="10.1.0.2", now=2.6) == Found(1, ("10.1.0.2", PORT))
    beacons.on_connected(1)
    assert heard(beacons, identity(1), at="10.0.0.2", now=9.0) is None


def test_who_comes_back_is_reported_again() -> None:
    beacons = Beacons(identity(0), 0.0)
    heard(beacons, identity(1))
    beacons.on_connected(1)
    beacons.on_lost(1, 5.0)
    assert heard(beacons, identity(1, boot_id=7), now=6.0) == Found(1, ("10.0.0.9", PORT))


def test_neighbours_and_own_echoes_are_nobody() -> None:
    beacons = Beacons(identity(0), 0.0)
    assert heard(beacons, identity(1, cluster_id="other")) is None
    assert heard(beacons, identity(0)) is None
    assert beacons.on_datagram(b"hello", ("10.0.0.9", 9997), 1.0) is None
    assert not beacons.troubles()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"key": "x" * 16}, "COMFY_CLUSTER_KEY is another one"),
        ({"key": None}, "COMFY_CLUSTER_KEY is another one"),
        ({"instance_count": 5}, "counts 5 instances, this instance 4"),
    ],
)
def test_who_cannot_be_part_of_it_is_told(changed: dict[str, object], reason: str) -> None:
    beacons = Beacons(identity(0), 0.0)
    assert heard(beacons, identity(2, **changed)) is None
    assert reason in beacons.troubles()[2] and "10.0.0.9:9998" in beacons.troubles()[2]
    assert heard(beacons, identity(2)) == Found(2, ("10.0.0.9", PORT))
    assert not beacons.troubles()


def test_a_version_that_does_not_fit_is_told() -> None:
    own = identity(1)
    newer = Beacon(own.cluster_id, 1, 4, 9, PORT, protocol_version=99, software_version="9.9").pack(
        KEY
    )
    beacons = Beacons(identity(0), 0.0)
    assert beacons.on_datagram(newer, ("10.0.0.9", 9997), 1.0) is None
    assert "protocol version 99 (software 9.9)" in beacons.troubles()[1]


def test_made_up_instances_take_bounded_memory() -> None:
    beacons = Beacons(identity(0, instance_count=4096), 0.0)
    for index in range(1, 1000):
        heard(beacons, identity(index, instance_count=4096, key=None))
    assert len(beacons.troubles()) == LARGEST_TROUBLES


@pytest.mark.parametrize("boot_ids", [(1, 2), (2, 1)])
@pytest.mark.parametrize("between", [0.0, 0.0005, 0.3, 40.0])
def test_of_two_with_one_index_the_younger_one_stops(
    boot_ids: tuple[int, int], between: float
) -> None:
    lan = Lan()
    lan.start("10.0.0.5", identity(2, boot_id=boot_ids[0]))
    lan.run_until(between)
    began = lan.now
    lan.start("10.0.0.6", identity(2, boot_id=boot_ids[1]))
    lan.run_until(began + 1.0)
    stopped = {name for name, conflict in lan.conflicts if conflict.is_older}
    assert len(stopped) == 1
    if between >= 0.3:
        assert stopped == {"10.0.0.6"}
        assert {name for name, _ in lan.conflicts} == {"10.0.0.5", "10.0.0.6"}  # both say so


def test_two_with_one_index_that_both_have_peers_go_on() -> None:
    lan = Lan()
    for name, boot_id in (("10.0.0.5", 1), ("10.0.0.6", 2)):
        lan.start(name, identity(2, boot_id=boot_id)).on_connected(0)
        lan.run_until(lan.now + 1.0)
    lan.run_until(10.0)
    assert not any(conflict.is_older for _, conflict in lan.conflicts)
    sent = sum(each._sent_count for each in lan.hosts.values())
    assert sent < 2 * 60  # they do not answer each other without end


def test_a_recorded_beacon_stops_nobody() -> None:
    recorded = Beacons(identity(2, boot_id=1 << 60), 0.0).next_beacon(500.0)
    beacons = Beacons(identity(2, boot_id=5), 0.0)
    meanings = [beacons.on_datagram(recorded, ("10.0.0.9", 9997), 0.1 * n) for n in range(50)]
    assert meanings == [None] * 50


def test_who_is_reported_where_another_one_was_takes_its_place_until_that_is_heard() -> None:
    beacons = Beacons(identity(0), 0.0)
    shared = ("10.0.0.9", PORT)
    assert heard(beacons, identity(1), now=1.0) == Found(1, shared)
    assert heard(beacons, identity(2), now=1.1) == Found(2, shared)
    assert heard(beacons, identity(2), at="10.0.0.7", now=3.0) == Found(2, ("10.0.0.7", PORT))
    assert heard(beacons, identity(1), now=3.1) == Found(1, shared)


def test_a_neighbour_with_another_key_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    beacons = Beacons(identity(0), 0.0)
    for second in range(10):
        heard(beacons, identity(1), now=second)
        heard(beacons, identity(1, key="x" * 16), at=f"10.0.0.{second}", now=second)
    assert sum("another one" in each.message for each in caplog.records) == 1
    beacons.on_connected(1)
    heard(beacons, identity(1), now=20.0)
    heard(beacons, identity(1, key="x" * 16), now=20.1)
    assert not beacons.troubles()


def test_a_beacon_is_small() -> None:
    long = identity(0, cluster_id="c" * 128, hostname="2001:db8::1", software_version="v" * 64)
    assert len(Beacons(long, 0.0).next_beacon(1e6)) <= LARGEST_BEACON // 2


def test_an_observer_is_found_and_finds_like_anybody() -> None:
    lan = Lan()
    for index in range(3):
        lan.start(f"10.0.0.{index + 1}", identity(index, is_observer=index == 2))
    lan.run_until(0.2)
    assert len(lan.found) == 6


@pytest.mark.parametrize("boot_ids", [(1, 2), (2, 1)])
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("has_peers", [False, True])
def test_an_observer_stops_when_the_instance_is_there_which_says_nothing(
    boot_ids: tuple[int, int], is_first: bool, has_peers: bool
) -> None:
    lan = Lan()
    names = ["10.0.0.6", "10.0.0.5"] if is_first else ["10.0.0.5", "10.0.0.6"]
    for name in names:
        is_observer = name == "10.0.0.6"
        own = identity(2, boot_id=boot_ids[is_observer], is_observer=is_observer)
        started = lan.start(name, own)
        if has_peers:
            started.on_connected(0)
        lan.run_until(lan.now + 30.0)
    assert {name for name, _ in lan.conflicts} == {"10.0.0.6"}
    assert all(conflict.is_older for _, conflict in lan.conflicts)
    assert lan.hosts["10.0.0.5"]._stops == 0


def test_a_recorded_beacon_stops_no_observer() -> None:
    recorded = Beacons(identity(2, boot_id=7), 0.0).next_beacon(500.0)
    beacons = Beacons(identity(2, boot_id=5, is_observer=True), 0.0)
    meanings = [beacons.on_datagram(recorded, ("10.0.0.9", 9997), 0.1 * n) for n in range(50)]
    assert meanings == [None] * 50


def test_an_observer_takes_no_address_and_gives_its_own_up_at_once() -> None:
    beacons = Beacons(identity(0), 0.0)
    looking = identity(1, boot_id=9, is_observer=True)
    assert heard(beacons, looking, at="10.0.0.7", now=1.0) == Found(1, ("10.0.0.7", PORT))
    assert heard(beacons, looking, at="10.0.0.8", now=2.5) == Found(1, ("10.0.0.8", PORT))
    assert heard(beacons, identity(1), at="10.0.0.2", now=2.6) == Found(1, ("10.0.0.2", PORT))
    assert heard(beacons, looking, at="10.0.0.8", now=9.0) is None
    assert heard(beacons, identity(1), at="10.0.0.3", now=9.1) == Found(1, ("10.0.0.3", PORT))
    beacons.on_connected(1)
    assert heard(beacons, looking, at="10.0.0.8", now=20.0) is None


def test_an_observer_s_hello_moves_no_member_and_takes_no_member_s_address() -> None:
    beacons = Beacons(identity(0), 0.0)
    there, looking = ("10.0.0.2", PORT), ("10.0.0.7", PORT)
    assert beacons.on_heard(1, there, 1.0) == Found(1, there)
    for peer, address in ((1, looking), (2, there)):
        assert beacons.on_heard(peer, address, 9.0, is_observer=True) is None


def test_an_observer_found_by_its_hello_gives_its_place_up_at_once() -> None:
    beacons = Beacons(identity(0), 0.0)
    looking = ("10.0.0.7", PORT)
    assert beacons.on_heard(1, looking, 1.0, is_observer=True) == Found(1, looking)
    found = heard(beacons, identity(1), at="10.0.0.2", now=1.1)
    assert found == Found(1, ("10.0.0.2", PORT))
