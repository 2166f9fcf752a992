"""The address that the world sees: when servers are asked, which answer counts, how it ends."""

from __future__ import annotations

import itertools
import queue
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery.reflexive import ASK_TIMEOUT, AskingTimes, ReflexiveAddress
from comfy_cluster.discovery.static import Resolver
from comfy_cluster.errors import RemoteProtocolError, TransferTimeout
from comfy_cluster.transport.handle import Handle

Address = tuple[str, int]
WAIT = 10.0  # seconds; a bound for a broken build
SERVERS = [("first.example", 3478), ("second.example", 3479)]
ADDRESSES = {"first.example": "203.0.113.1", "second.example": "203.0.113.2"}
FIRST, SECOND = ("203.0.113.1", 3478), ("203.0.113.2", 3479)
SEEN: Address = ("198.51.100.7", 40_000)


class Setup:
    """A keeper whose questions the test answers."""

    def __init__(
        self, servers: list[Address] = SERVERS, *, resolve: Resolver | None = None, **settings: Any
    ) -> None:
        self.questions: queue.Queue[tuple[Address, Handle[Address]]] = queue.Queue()
        self.told: queue.Queue[Address] = queue.Queue()
        self.threads: list[str] = []
        self.keeper = ReflexiveAddress(
            ClusterConfig(
                instance_count=2, registration_mode=RegistrationMode.BROADCAST, **settings
            ),
            servers,
            ask=self._ask,
            on_change=self._on_change,
            resolve=resolve or self._resolve,
            rng=random.Random(1),
            interval=(0.01, 0.02),
        )

    def _ask(self, server: Address, *, timeout: float) -> Handle[Address]:
        assert timeout == ASK_TIMEOUT
        handle: Handle[Address] = Handle(f"STUN server {server[0]}")
        self.questions.put((server, handle))
        return handle

    def _resolve(self, hostname: str, port: int) -> Address:
        if hostname not in ADDRESSES:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ADDRESSES[hostname], port

    def _on_change(self, address: Address) -> None:
        self.threads.append(threading.current_thread().name)
        self.told.put(address)

    def next_question(self) -> tuple[Address, Handle[Address]]:
        return self.questions.get(timeout=WAIT)

    def answer(self, outcome: Address | BaseException) -> Address:
        """Answers the next question; returns who was asked."""
        server, handle = self.next_question()
        if isinstance(outcome, BaseException):
            handle.set_exception(outcome)
        else:
            handle.set_result(outcome)
        return server


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    made.keeper.close()


# Times


def test_answered_it_asks_again_every_20_to_25_seconds() -> None:
    times = AskingTimes(100.0, rng=random.Random(3))
    assert times.ask_at == 100.0
    delays = []
    for _ in range(1000):
        now = times.ask_at
        times.on_answer(now)
        delays.append(times.ask_at - now)
    assert 20.0 <= min(delays) < 20.2 and 24.8 < max(delays) <= 25.0


def test_unanswered_it_asks_again_soon_and_then_less_often() -> None:
    times = AskingTimes(0.0, rng=random.Random(3))
    moments = []
    for _ in range(8):
        moments.append(times.ask_at)
        times.on_silence(times.ask_at)
    delays = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert delays[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert all(20.0 <= each <= 25.0 for each in delays[5:])
    times.on_answer(0.0)
    times.on_silence(0.0)
    assert times.ask_at == 1.0


# Answers


def test_it_asks_at_the_start_and_tells_what_changes(setup: Setup) -> None:
    setup.keeper.start()
    assert setup.answer(SEEN) == FIRST
    assert setup.told.get(timeout=WAIT) == SEEN
    assert setup.keeper.address == SEEN
    for _ in range(3):
        setup.answer(SEEN)
    setup.answer(("198.51.100.7", 50_000))
    assert setup.told.get(timeout=WAIT) == ("198.51.100.7", 50_000)
    assert setup.told.empty()
    assert set(setup.threads) == {"comfy-cluster-reflexive"}


def test_the_next_server_is_asked_and_stays_the_first(setup: Setup) -> None:
    setup.keeper.start()
    assert setup.answer(TransferTimeout("silent")) == FIRST
    assert setup.answer(SEEN) == SECOND
    assert setup.told.get(timeout=WAIT) == SEEN
    assert setup.answer(RemoteProtocolError("error 500")) == SECOND
    assert setup.answer(SEEN) == FIRST
    assert setup.keeper.trouble == ""


def test_a_round_without_an_answer_leaves_the_address_and_says_why(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.keeper.start()
    setup.answer(SEEN)
    setup.answer(TransferTimeout("STUN server 203.0.113.1:3478: no answer to 3 requests"))
    setup.answer(RemoteProtocolError("STUN server 203.0.113.2:3479: error 420"))
    assert setup.next_question()[0] == FIRST
    assert setup.keeper.address == SEEN
    assert setup.keeper.trouble == (
        "STUN server 203.0.113.1:3478: no answer to 3 requests;"
        " STUN server 203.0.113.2:3479: error 420"
    )


def test_a_name_that_cannot_be_resolved_is_a_trouble_of_one_server() -> None:
    setup = Setup([("nowhere.example", 3478), SERVERS[1]])
    setup.keeper.start()
    assert setup.answer(SEEN) == SECOND
    assert setup.told.get(timeout=WAIT) == SEEN
    setup.keeper.close()
    setup = Setup([("nowhere.example", 3478)])
    setup.keeper.start()
    wait_until(lambda: "nowhere.example cannot be resolved" in setup.keeper.trouble)
    setup.keeper.close()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_loopback_counts_on_a_single_host_only(setup: Setup) -> None:
    setup.keeper.start()
    assert setup.answer(("127.0.0.1", 9998)) == FIRST
    assert setup.answer(SEEN) == SECOND
    assert setup.told.get(timeout=WAIT) == SEEN
    single = Setup(single_host=True)
    single.keeper.start()
    single.answer(("127.0.0.1", 9998))
    assert single.told.get(timeout=WAIT) == ("127.0.0.1", 9998)
    assert [(each.type, each.address) for each in single.keeper.candidates()] == [
        ("host", "127.0.0.1")
    ]
    single.keeper.close()


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.251", "fe80::1", "255.255.255.255"])
def test_a_server_cannot_have_others_flooded(setup: Setup, address: str) -> None:
    setup.keeper.start()
    setup.answer((address, 53))
    setup.answer((address, 53))
    wait_until(lambda: "where no other machine can reach it" in setup.keeper.trouble)
    assert setup.keeper.address is None
    assert setup.told.empty()


def test_candidates_have_the_reflexive_address_once_it_is_known() -> None:
    setup = Setup(listen_address="10.0.0.2", direct_listen_port=1234)
    assert [(each.type, each.address, each.port) for each in setup.keeper.candidates()] == [
        ("host", "10.0.0.2", 1234)
    ]
    setup.keeper.start()
    setup.answer(SEEN)
    setup.told.get(timeout=WAIT)
    assert [(each.type, each.address, each.port) for each in setup.keeper.candidates()] == [
        ("host", "10.0.0.2", 1234),
        ("srflx", *SEEN),
    ]
    setup.keeper.close()


def test_interfaces_of_this_machine_are_candidates() -> None:
    found = Setup().keeper.candidates()
    assert len(found) <= 8
    assert all(each.type == "host" and each.port == 9998 for each in found)


# Life


def test_it_pauses_while_nobody_needs_it(setup: Setup) -> None:
    setup.keeper.start()
    server, handle = setup.next_question()
    setup.keeper.set_needed(False)
    handle.set_result(SEEN)
    assert setup.told.get(timeout=WAIT) == SEEN
    with pytest.raises(queue.Empty):
        setup.questions.get(timeout=0.3)
    setup.keeper.set_needed(True)
    assert setup.answer(SEEN) == server


def test_closing_ends_the_question_and_the_thread_at_once(setup: Setup) -> None:
    setup.keeper.start()
    _, handle = setup.next_question()
    begin = time.monotonic()
    setup.keeper.close()
    setup.keeper.close()
    assert time.monotonic() - begin < 0.4
    assert handle.done()
    assert "comfy-cluster-reflexive" not in [each.name for each in threading.enumerate()]
    assert setup.questions.empty()


def test_closing_waits_for_no_resolver() -> None:
    is_resolving, may_end = threading.Event(), threading.Event()

    def resolve(hostname: str, port: int) -> Address:
        is_resolving.set()
        assert may_end.wait(WAIT)
        return FIRST

    setup = Setup(resolve=resolve)
    setup.keeper.start()
    assert is_resolving.wait(WAIT)
    begin = time.monotonic()
    setup.keeper.close()
    assert time.monotonic() - begin < 2.0
    may_end.set()
    server, handle = setup.next_question()
    assert server == FIRST
    assert handle.exception(WAIT) is not None, "it was asked too late, and is given up"


def test_without_servers_nothing_runs() -> None:
    setup = Setup([])
    setup.keeper.start()
    assert "comfy-cluster-reflexive" not in [each.name for each in threading.enumerate()]
    assert setup.keeper.address is None
    setup.keeper.close()
