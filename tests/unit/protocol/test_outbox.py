from __future__ import annotations

from itertools import pairwise

import pytest

from comfy_cluster.errors import ClusterError, PeerLost, TransferTimeout
from comfy_cluster.protocol.outbox import LONGEST_RETRY, SPAN, WINDOW, Outbox
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.protocol.timers import Timers
from comfy_cluster.wire import Message, MessageType
from tests.unit.protocol.fake_engine import settings_of


class Driver:
    """An outbox to peer 3 with its timers, and a listener that keeps what it is told."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.stats = ProtocolStats()
        self.sent: list[tuple[float, int]] = []
        self.delivered: list[int] = []
        self.failed: list[tuple[float, int, ClusterError]] = []
        self.now = 0.0
        self.settings = settings_of(count=4)
        self.outbox = Outbox(
            3, settings=self.settings, timers=self.timers, stats=self.stats, send=self._send
        )

    def _send(self, packed: bytes) -> bool:
        self.sent.append((self.now, Message.parse(packed).message_id))
        return True

    def post(self, message_id: int) -> None:
        message = Message(message_id, MessageType.FREE_MEMORY, 0, 3, True)
        self.outbox.post(message, message.pack(), self, self.now)

    def ack(self, message_id: int) -> None:
        self.outbox.on_ack(message_id, self.now)

    def run_to(self, end: float) -> None:
        while (at := self.timers.next_at) is not None and at <= end:
            self.now = at
            timer = self.timers.pop_due(at)
            assert timer is not None
            assert isinstance(timer[1], tuple) and timer[1][0] == 3
            message_id: int = timer[1][1]
            self.outbox.on_timer(message_id, at)
        self.now = end

    def on_message_delivered(self, message_id: int, now: float) -> None:
        self.delivered.append(message_id)

    def on_message_failed(self, message_id: int, error: ClusterError, now: float) -> None:
        self.failed.append((now, message_id, error))


@pytest.fixture
def driver() -> Driver:
    driver = Driver()
    driver.outbox.on_connected(0.0)
    return driver


def test_acknowledged_message_is_delivered_once_and_sent_no_more(driver: Driver) -> None:
    driver.post(1)
    driver.ack(1)
    driver.ack(1)
    driver.run_to(100.0)
    assert driver.delivered == [1] and len(driver.sent) == 1
    assert len(driver.outbox) == 0 and len(driver.timers) == 0


def test_retries_start_at_the_measured_round_trip_double_and_are_capped(driver: Driver) -> None:
    for message_id in range(20):  # a round trip of 0.1 s
        driver.post(message_id)
        driver.now += 0.1
        driver.ack(message_id)
    start = driver.now
    driver.sent.clear()
    driver.post(99)
    driver.run_to(start + 30.0)
    times = [at - start for at, _ in driver.sent]
    delays = [later - earlier for earlier, later in pairwise(times)]
    assert 0.1 <= delays[0] <= 0.3
    for earlier, later in pairwise(delays[:-1]):
        assert later == pytest.approx(min(2 * earlier, LONGEST_RETRY))


def test_message_without_ack_fails_after_its_time_by_name(driver: Driver) -> None:
    driver.post(42)
    driver.run_to(100.0)
    ((at, message_id, error),) = driver.failed
    assert at == pytest.approx(driver.settings.message_timeout) and message_id == 42
    assert isinstance(error, TransferTimeout) and error.peer == 3
    assert str(error).startswith("ACK timeout for message 42: FREE_MEMORY to instance 3 was sent")
    assert driver.stats.messages_timed_out == 1
    assert len(driver.outbox) == 0 and len(driver.timers) == 0


def test_message_waits_for_the_connection_and_then_goes() -> None:
    driver = Driver()
    driver.post(1)
    driver.run_to(10.0)
    assert driver.sent == []
    driver.outbox.on_connected(10.0)
    assert driver.sent == [(10.0, 1)]
    driver.ack(1)
    assert driver.delivered == [1]


def test_message_to_a_peer_that_never_connects_fails_in_time() -> None:
    driver = Driver()
    driver.post(1)
    driver.run_to(100.0)
    ((at, _, error),) = driver.failed
    assert at == pytest.approx(driver.settings.message_timeout)
    assert str(error).startswith("ACK timeout for message 1:") and "not connected" in str(error)


def test_lost_connection_fails_all_messages_sent_or_not(driver: Driver) -> None:
    for message_id in range(WINDOW + 5):
        driver.post(message_id)
    error = PeerLost("gone", peer=3)
    driver.outbox.on_lost(error, driver.now)
    assert [failed[1:] for failed in driver.failed] == [(n, error) for n in range(WINDOW + 5)]
    assert len(driver.outbox) == 0 and len(driver.timers) == 0


def test_window_bounds_what_is_on_its_way(driver: Driver) -> None:
    for message_id in range(3 * WINDOW):
        driver.post(message_id)
    assert len(driver.sent) == WINDOW
    driver.ack(5)
    assert driver.sent[-1] == (0.0, WINDOW)
    for message_id in range(3 * WINDOW):
        driver.ack(message_id)
    assert sorted(driver.delivered) == list(range(3 * WINDOW))


def test_newest_message_is_never_further_ahead_than_the_receiver_remembers(driver: Driver) -> None:
    driver.post(0)
    for message_id in range(1, SPAN + 10):
        driver.post(message_id)
        driver.ack(message_id)
    assert driver.sent[-1][1] == SPAN - 1
    driver.ack(0)
    assert driver.sent[-1][1] == SPAN + 9


def test_cancelled_message_is_forgotten_without_a_word(driver: Driver) -> None:
    driver.post(1)
    assert driver.outbox.cancel(1, driver.now)
    assert not driver.outbox.cancel(1, driver.now)
    driver.ack(1)
    driver.run_to(100.0)
    assert not driver.delivered and not driver.failed and len(driver.timers) == 0


def test_round_trip_of_a_message_sent_twice_is_not_measured(driver: Driver) -> None:
    driver.post(1)
    driver.run_to(2.0)
    assert driver.stats.messages_resent > 0
    driver.ack(1)
    assert not driver.outbox.rtt.has_sample


def test_thousands_of_messages_leave_nothing_behind(driver: Driver) -> None:
    for message_id in range(5_000):
        driver.post(message_id)
        driver.ack(message_id)
    assert len(driver.outbox) == 0 and len(driver.timers) == 0
    assert len(driver.timers._heap) < 200
