"""The simulated network itself: what it promises to the tests that trust it."""

from __future__ import annotations

import pytest

from tests.simnet import Address, Link, SimNetwork

A, B = ("10.0.0.1", 1), ("10.0.0.2", 2)


class Talker:
    """Sends the packets that it was given, each at its time, and keeps what arrives."""

    def __init__(self, *packets: tuple[float, bytes]) -> None:
        self.waiting = sorted(packets)
        self.received: list[tuple[float, bytes]] = []

    def receive_packet(self, packet: bytes, address: Address, now: float) -> None:
        self.received.append((now, packet))

    def packets_to_send(self, now: float) -> list[tuple[Address, bytes]]:
        due = [packet for at, packet in self.waiting if at <= now]
        self.waiting = [item for item in self.waiting if item[0] > now]
        return [(B, packet) for packet in due]

    def next_timer(self) -> float | None:
        return self.waiting[0][0] if self.waiting else None


def run(link: Link, *packets: tuple[float, bytes], seed: int = 1) -> list[tuple[float, bytes]]:
    """Send packets from A to B; return when each arrived."""
    network, target = SimNetwork(seed=seed, link=link), Talker()
    network.attach(A, Talker(*packets))
    network.attach(B, target)
    while network.step():
        pass
    return target.received


def many(count: int) -> list[tuple[float, bytes]]:
    return [(number / 1000, number.to_bytes(4, "big") * 25) for number in range(count)]


def test_delay_is_added_to_the_moment_of_sending() -> None:
    assert run(Link(delay=0.25), (1.0, b"a"), (2.0, b"b")) == [(1.25, b"a"), (2.25, b"b")]


def test_rate_spreads_packets_and_the_queue_is_finite() -> None:
    packets = [(0.0, bytes([number]) * 100) for number in range(10)]
    arrived = run(Link(rate=1000.0, queue_size=300), *packets)
    assert [packet[0] for _, packet in arrived] == [0, 1, 2]
    assert [at for at, _ in arrived] == pytest.approx([0.1, 0.2, 0.3])


def test_scripted_loss_and_mtu() -> None:
    link = Link(lost_packets=frozenset({0, 2}), mtu=10)
    assert [p for _, p in run(link, (0, b"0"), (1, b"1"), (2, b"2"), (3, b"x" * 11))] == [b"1"]


def test_chance_of_loss_duplication_and_jitter() -> None:
    packets = many(2000)
    lost = run(Link(loss=0.2), *packets)
    assert 1500 <= len(lost) <= 1700
    doubled = run(Link(duplication=0.1), *packets)
    assert 2140 <= len(doubled) <= 2260
    late = run(Link(jitter=0.1), *packets)
    order = [packet for _, packet in late]
    assert sorted(order) == [packet for _, packet in packets] != order


def test_damage_is_counted_as_loss() -> None:
    network, target = SimNetwork(seed=3, link=Link(corruption=0.5, truncation=0.3)), Talker()
    network.attach(A, Talker(*many(500)))
    network.attach(B, target)
    network.run_for(1.0)
    sent = {packet for _, packet in many(500)}
    damaged = [packet for _, packet in target.received if packet not in sent]
    assert len(damaged) == network.counts.lost_packets > 250


def test_run_is_a_pure_function_of_scenario_and_seed() -> None:
    link = Link(delay=0.01, jitter=0.05, loss=0.1, duplication=0.1, corruption=0.1)
    assert run(link, *many(300)) == run(link, *many(300))
    assert run(link, *many(300)) != run(link, *many(300), seed=2)


def test_detached_instance_hears_nothing() -> None:
    network, target = SimNetwork(seed=1, link=Link(delay=1.0)), Talker()
    network.attach(A, Talker((0.0, b"x")))
    network.attach(B, target)
    network.run_for(0.5)
    network.detach(B)
    network.run_for(5.0)
    assert target.received == []
    assert network.now == 5.5


def test_timer_that_never_advances_is_a_livelock() -> None:
    class Stuck(Talker):
        def next_timer(self) -> float | None:
            return 0.0

    network = SimNetwork(seed=42)
    network.attach(A, Stuck())
    with pytest.raises(AssertionError, match="seed 42: livelock"):
        network.run_for(1.0)


def test_sending_without_end_is_noticed() -> None:
    class Endless(Talker):
        def packets_to_send(self, now: float) -> list[tuple[Address, bytes]]:
            return [(B, b"x")] * 1000

    network = SimNetwork(seed=42)
    network.attach(A, Endless((0.0, b"x")))
    with pytest.raises(AssertionError, match="sends without end"):
        network.step()


def test_waiting_for_what_never_happens_is_an_error() -> None:
    network = SimNetwork(seed=7)
    with pytest.raises(AssertionError, match=r"seed 7: at 0\.000 s nothing will ever happen"):
        network.run_until(lambda: False, time_limit=1.0)
    network.attach(A, Talker((5.0, b"x")))
    with pytest.raises(AssertionError, match=r"seed 7: not done after 1\.000 s"):
        network.run_until(lambda: False, time_limit=1.0)
