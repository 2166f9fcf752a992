"""Questions to STUN servers in simulated time: when they go, what is an answer, how they end."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest

from comfy_cluster.errors import LocalProtocolError, RemoteProtocolError, TransferTimeout
from comfy_cluster.fastpath import MAX_STUN_TRANSACTIONS
from comfy_cluster.transport.binding_requests import BindingRequests, Retransmission
from comfy_cluster.transport.handle import Handle
from tests.hostile import mutated
from tests.packets import stun, u
from tests.stun_responder import error, mapped_address, success

Address = tuple[str, int]
SERVER: Address = ("203.0.113.5", 3478)
OTHER: Address = ("203.0.113.6", 3478)
REFLEXIVE: Address = ("198.51.100.7", 40_000)


class FakeEngine:
    """Keeps the ids, and the contract's bound."""

    def __init__(self) -> None:
        self.expected: set[bytes] = set()

    def expect_stun(self, transaction_id: bytes) -> None:
        assert len(transaction_id) == 12
        assert len(self.expected) < MAX_STUN_TRANSACTIONS
        self.expected.add(transaction_id)

    def forget_stun(self, transaction_id: bytes) -> None:
        self.expected.remove(transaction_id)


class Desk:
    """`BindingRequests` with a fake engine, a list in place of a socket, and a clock of its own."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.sent: list[tuple[float, bytes, Address]] = []
        self.now = 100.0
        self.requests = BindingRequests(self.engine, send=self._send)

    def _send(self, packet: bytes, address: Address) -> None:
        self.sent.append((self.now, packet, address))

    def ask(self, server: Address = SERVER, *, timeout: float = 3.0) -> Handle[Address]:
        handle: Handle[Address] = Handle("STUN server")
        self.requests.ask(handle, server, timeout=timeout, now=self.now)
        return handle

    @property
    def last_id(self) -> bytes:
        return self.sent[-1][1][8:20]

    def run(self) -> None:
        """Until nothing is due any more."""
        while (due := self.requests.next_timer()) is not None:
            assert due >= self.now
            self.now = due
            self.requests.handle_timers(self.now)


# Times


@pytest.mark.parametrize(
    ("timeout", "times", "end"),
    [
        (1000.0, [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5], 39.5),  # RFC 8489's own example
        (39.5, [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5], 39.5),
        (3.0, [0.0, 0.5, 1.5], 3.0),
        (1.5, [0.0, 0.5], 1.5),
        (0.1, [0.0], 0.1),
        (0.0, [], 0.0),
    ],
)
def test_a_request_goes_again_as_the_rfc_says_within_the_askers_time(
    timeout: float, times: list[float], end: float
) -> None:
    desk = Desk()
    handle = desk.ask(timeout=timeout)
    desk.run()
    assert [at - 100.0 for at, _, _ in desk.sent] == pytest.approx(times)
    assert desk.now - 100.0 == pytest.approx(end)
    assert isinstance(handle.exception(0), TransferTimeout)


def test_a_clock_that_comes_late_sends_once_and_waits_anew() -> None:
    retransmission = Retransmission(0.0, timeout=10.0)
    assert retransmission.on_due(0.0)
    assert retransmission.on_due(4.0)  # 3.5 s late
    assert retransmission.due_at == 5.0
    assert not retransmission.on_due(12.0)
    assert retransmission.sent_count == 2


def test_it_is_one_request_that_goes_again_and_each_question_has_another() -> None:
    desk = Desk()
    desk.ask()
    desk.run()
    desk.ask()
    desk.run()
    first, second = desk.sent[:3], desk.sent[3:]
    assert len({packet for _, packet, _ in first}) == 1
    assert len({packet for _, packet, _ in desk.sent}) == 2
    assert {address for _, _, address in desk.sent} == {SERVER}
    assert all(packet[:8] == u(0x0001, 2) + u(0, 2) + u(0x2112A442, 4) for _, packet, _ in second)
    assert desk.requests.stats.requests_sent == 6
    assert desk.requests.stats.timeouts == 2


# Answers


def test_the_answer_ends_the_question() -> None:
    desk = Desk()
    handle = desk.ask()
    desk.requests.on_packet(SERVER, success(desk.last_id, REFLEXIVE))
    assert handle.result(0) == REFLEXIVE
    assert desk.requests.next_timer() is None
    assert desk.engine.expected == set()
    desk.requests.on_packet(SERVER, success(desk.last_id, REFLEXIVE))  # to the second request
    assert desk.requests.stats.answers == 1
    assert desk.requests.stats.packets_ignored == 1


def test_answers_to_several_questions_find_theirs() -> None:
    desk = Desk()
    asked = [(desk.ask(server), desk.last_id, server) for server in (SERVER, OTHER, SERVER)]
    for number, (_, transaction_id, server) in reversed(list(enumerate(asked))):
        desk.requests.on_packet(server, success(transaction_id, (REFLEXIVE[0], 1000 + number)))
    assert [handle.result(0)[1] for handle, _, _ in asked] == [1000, 1001, 1002]


@pytest.mark.parametrize(
    ("server", "source"),
    [
        (("::ffff:203.0.113.5", 3478), SERVER),
        (SERVER, ("::ffff:203.0.113.5", 3478)),
        (("2001:db8::5", 3478), ("2001:db8:0:0::5", 3478)),
    ],
)
def test_an_address_is_the_same_in_either_form(server: Address, source: Address) -> None:
    desk = Desk()
    handle = desk.ask(server)
    desk.requests.on_packet(source, success(desk.last_id, ("2001:db8::7", 40_000)))
    assert handle.result(0) == ("2001:db8::7", 40_000)


def test_an_ipv4_address_in_ipv6_is_told_as_ipv4() -> None:
    desk = Desk()
    handle = desk.ask()
    desk.requests.on_packet(SERVER, success(desk.last_id, ("::ffff:198.51.100.7", 40_000)))
    assert handle.result(0) == REFLEXIVE


def test_an_old_server_tells_the_address_without_a_mask() -> None:
    desk = Desk()
    handle = desk.ask()
    attribute = mapped_address(REFLEXIVE, desk.last_id, attribute=0x0001)
    desk.requests.on_packet(SERVER, stun(desk.last_id, attribute))
    assert handle.result(0) == REFLEXIVE


def test_a_refusal_ends_the_question() -> None:
    desk = Desk()
    handle = desk.ask()
    desk.requests.on_packet(SERVER, error(desk.last_id, 420))
    failure = handle.exception(0)
    assert isinstance(failure, RemoteProtocolError)
    assert "error 420 no, never" in str(failure)
    assert desk.engine.expected == set()


@pytest.mark.parametrize(
    "source",
    [OTHER, (SERVER[0], 3479), ("::ffff:203.0.113.6", 3478), ("fe80::5%eth0", 3478), ("::", 3478)],
)
def test_nobody_but_the_server_answers(source: Address) -> None:
    desk = Desk()
    handle = desk.ask()
    desk.requests.on_packet(source, success(desk.last_id, ("192.0.2.66", 6)))
    desk.requests.on_packet(source, error(desk.last_id, 400))
    assert not handle.done()
    assert desk.requests.stats.packets_ignored == 2
    desk.requests.on_packet(SERVER, success(desk.last_id, REFLEXIVE))
    assert handle.result(0) == REFLEXIVE


HOSTILE: dict[str, Any] = {
    "empty": lambda _: b"",
    "header only": lambda each: stun(each),
    "another transaction": lambda each: success(bytes(12), REFLEXIVE),
    "a request": lambda each: stun(each, kind=0x0001),
    "an indication": lambda each: stun(each, kind=0x0011),
    "another method": lambda each: stun(each, mapped_address(REFLEXIVE, each), kind=0x0103),
    "a success without an address": lambda each: stun(each, u(0x8022, 2) + u(4, 2) + b"soft"),
    "port 0": lambda each: success(each, (REFLEXIVE[0], 0)),
    "an error without a code": lambda each: stun(each, kind=0x0111),
    "an attribute behind the end": lambda each: stun(each, u(0x0020, 2) + u(9999, 2)),
    "a length that is not the packet's": lambda each: success(each, REFLEXIVE)[:-4],
    "what must be understood": lambda each: stun(
        each, mapped_address(REFLEXIVE, each) + u(0x7FFF, 2) + u(0, 2)
    ),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=list(HOSTILE))
def test_what_is_no_answer_is_dropped_and_the_answer_still_counts(make: Any) -> None:
    desk = Desk()
    handle = desk.ask()
    desk.requests.on_packet(SERVER, make(desk.last_id))
    assert not handle.done()
    assert desk.requests.stats.packets_ignored == 1
    desk.requests.on_packet(SERVER, success(desk.last_id, REFLEXIVE))
    assert handle.result(0) == REFLEXIVE


@pytest.mark.parametrize("seed", range(20))
def test_damaged_answers_raise_nothing(seed: int) -> None:
    rng = random.Random(seed)
    desk = Desk()
    for _ in range(200):
        handle = desk.ask()
        make = rng.choice([partial(success, address=REFLEXIVE), partial(error, code=400)])
        transaction_id = desk.last_id
        for _ in range(10):
            desk.requests.on_packet(SERVER, mutated(rng, make(transaction_id)))
        desk.requests.on_packet(SERVER, success(transaction_id, REFLEXIVE))
        assert handle.done()
    assert desk.engine.expected == set()


# Bounds


def test_so_many_questions_at_once_and_no_more() -> None:
    desk = Desk()
    handles = [desk.ask() for _ in range(MAX_STUN_TRANSACTIONS)]
    refused = desk.ask()
    assert isinstance(refused.exception(0), LocalProtocolError)
    assert len(desk.sent) == MAX_STUN_TRANSACTIONS
    desk.requests.forget(handles[0])
    assert not desk.ask().done()
    desk.run()
    assert desk.engine.expected == set()


def test_a_question_that_was_given_up_is_forgotten() -> None:
    desk = Desk()
    handle = desk.ask()
    desk.requests.forget(handle)
    desk.requests.forget(handle)
    assert desk.requests.next_timer() is None
    assert desk.engine.expected == set()
    desk.requests.on_packet(SERVER, success(desk.last_id, REFLEXIVE))
    assert not handle.done()
