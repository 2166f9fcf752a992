from __future__ import annotations

from comfy_cluster.protocol.liveness import Liveness
from comfy_cluster.protocol.timers import TimerKind, Timers
from tests.unit.protocol.fake_engine import FakeEngine, address_of, settings_of


class Driver:
    def __init__(self, peers: int = 1) -> None:
        self.now = 0.0
        self.engine = FakeEngine(0)
        self.timers = Timers()
        self.heartbeats: list[tuple[float, int]] = []
        self.silent: list[tuple[float, int, float]] = []
        self.wake_ups = 0
        self.liveness = Liveness(
            settings=settings_of(count=10, heartbeat_interval=0.5, instance_timeout=3.0),
            engine=self.engine,
            timers=self.timers,
            send_heartbeat=lambda peer: self.heartbeats.append((self.now, peer)),
            on_silent=self._on_silent,
        )
        for peer in range(1, peers + 1):
            self.engine.connect_peer(
                peer,
                address_of(peer),
                local_session=peer,
                remote_session=peer,
                packet_size=1_200,
                largest_packet_size=0,
                now=0.0,
            )
            self.liveness.add(peer, 0.0)

    def _on_silent(self, peer: int, silence: float, now: float) -> None:
        self.silent.append((now, peer, silence))
        self.liveness.remove(peer)

    def hear(self, peer: int) -> None:
        self.engine.peers[peer].last_received_at = self.now

    def run_to(self, end: float, *, heard: tuple[int, ...] = ()) -> None:
        """Peers in `heard` are heard all the time."""
        while (at := self.timers.next_at) is not None and at <= end:
            self.now = at
            for peer in heard:
                self.hear(peer)
            assert self.timers.pop_due(at) == (TimerKind.LIVENESS, None)
            self.wake_ups += 1
            self.liveness.on_timer(at)
            assert self.timers.next_at is None or self.timers.next_at > at
        self.now = end


def test_losing_one_may_end_the_connection_of_another_one() -> None:
    driver = Driver(peers=3)

    def lose_both(peer: int, silence: float, now: float) -> None:
        driver.silent.append((now, peer, silence))
        for each in (1, 3):
            driver.engine.disconnect_peer(each)
            driver.liveness.remove(each)

    driver.liveness._on_silent = lose_both
    driver.run_to(4.0, heard=(2,))
    assert [peer for _, peer, _ in driver.silent] == [1]


def test_peer_gets_a_heartbeat_at_once_and_then_every_interval() -> None:
    driver = Driver()
    driver.run_to(2.0, heard=(1,))
    assert [at for at, _ in driver.heartbeats] == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_silent_peer_is_reported_once_when_its_time_is_over() -> None:
    driver = Driver(peers=2)
    driver.run_to(1.0, heard=(1, 2))
    driver.now = 1.25
    driver.hear(2)
    driver.run_to(10.0, heard=(1,))
    assert driver.silent == [(4.25, 2, 3.0)]


def test_idle_peers_cost_one_wake_up_an_interval_however_many_they_are() -> None:
    driver = Driver(peers=8)
    driver.run_to(60.0, heard=tuple(range(1, 9)))
    assert driver.wake_ups <= 60 / 0.5 + 1
    assert not driver.silent


def test_own_stall_does_not_lose_a_peer_that_is_heard_right_after() -> None:
    driver = Driver()
    driver.now = 60.0  # this process was stopped for a minute
    driver.timers.pop_due(60.0)
    driver.liveness.on_timer(60.0)
    driver.now = 60.4
    driver.hear(1)
    driver.run_to(62.0)
    assert not driver.silent
    driver.run_to(70.0)
    assert len(driver.silent) == 1


def test_without_peers_there_is_no_timer() -> None:
    driver = Driver()
    driver.liveness.remove(1)
    assert driver.timers.next_at is None
