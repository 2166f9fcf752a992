from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from comfy_cluster.protocol.handshake import Handshake, HelloOutcome
from comfy_cluster.wire import Announce, InstanceRole
from tests.unit.protocol.fake_engine import settings_of


def make(index: int, peer: int, **options: Any) -> Handshake:
    sessions = itertools.count(1_000 * (index + 1) + options.get("boot_id", 0))
    settings = settings_of(index, **options)
    return Handshake(peer, settings=settings, new_session=lambda: next(sessions))


def connected_pair() -> tuple[Handshake, Handshake]:
    a, b = make(0, 1), make(1, 0)
    answer = b.on_hello(a.hello()).answer
    assert answer is not None
    outcome = a.on_hello(answer)
    assert outcome.answer is not None
    b.on_hello(outcome.answer)
    return a, b


def test_three_hellos_connect_both_sides_with_each_other_s_ids() -> None:
    a, b = connected_pair()
    assert a.connection is not None and b.connection is not None
    assert a.connection.local_session == b.connection.remote_session
    assert a.connection.remote_session == b.connection.local_session
    assert (a.connection.boot_id, b.connection.boot_id) == (2, 1)


def test_hellos_that_cross_connect_both_sides_and_then_rest() -> None:
    a, b = make(0, 1), make(1, 0)
    to_a, to_b = [b.hello()], [a.hello()]
    for _ in range(10):
        answers_of_a = [a.on_hello(hello).answer for hello in to_a]
        answers_of_b = [b.on_hello(hello).answer for hello in to_b]
        to_b = [answer for answer in answers_of_a if answer]
        to_a = [answer for answer in answers_of_b if answer]
    assert not to_a and not to_b
    assert a.connection is not None and b.connection is not None
    assert a.connection.local_session == b.connection.remote_session


def test_a_peer_that_does_not_get_our_hellos_is_heard_and_not_connected() -> None:
    a, b = make(0, 1), make(1, 0)
    heard = [a.is_heard]
    a.on_hello(b.hello())  # its answer is lost, always
    heard += [a.is_heard, b.is_heard]
    a.on_lost()
    heard += [a.is_heard]
    assert heard == [False, True, False, False]
    assert a.connection is None


def test_side_that_missed_the_last_hello_is_answered_until_it_connects() -> None:
    a, b = make(0, 1), make(1, 0)
    answer = b.on_hello(a.hello()).answer
    assert answer is not None
    a.on_hello(answer)  # its answer is lost
    again = a.on_hello(b.hello())
    assert again.connection is None and again.answer is not None
    assert b.on_hello(again.answer).connection is not None


def test_forged_hello_changes_nothing_at_either_side() -> None:
    a, b = connected_pair()
    forged = replace(a.hello(), boot_id=99, session_id=4_711, echo_session_id=0)
    before = (a.connection, b.connection)
    outcome = b.on_hello(replace(forged, is_connected=False))
    assert outcome.connection is None and outcome.answer is not None
    at_a = a.on_hello(outcome.answer)  # B answers to A's address
    assert at_a == HelloOutcome(is_stale=True)
    assert (a.connection, b.connection) == before


def test_guessed_session_ids_do_not_connect() -> None:
    _, b = connected_pair()
    for guess in range(1, 500):
        hello = replace(make(0, 1, boot_id=9).hello(), echo_session_id=guess)
        assert b.on_hello(hello).connection is None


def test_restarted_peer_connects_anew_after_its_own_round_trip() -> None:
    a, b = connected_pair()
    first = b.connection
    restarted = make(0, 1, boot_id=77)
    answer = b.on_hello(restarted.hello()).answer
    assert answer is not None and b.connection == first
    outcome = restarted.on_hello(answer)
    assert outcome.answer is not None
    replaced = b.on_hello(outcome.answer)
    assert replaced.connection is not None and replaced.connection.boot_id == 77
    assert replaced.connection.local_session != a.connection.remote_session  # type: ignore[union-attr]


def test_session_ids_are_not_used_twice() -> None:
    a, b = connected_pair()
    old = a.connection
    assert old is not None and a.pending_session != old.local_session
    a.on_lost()
    assert a.connection is None
    assert b.on_hello(a.hello()).connection is None
    assert a.pending_session not in {old.local_session, 0}


def test_late_hello_of_the_lost_connection_does_not_bring_it_back() -> None:
    a, b = connected_pair()
    late = b.hello()
    a.on_lost()
    assert a.on_hello(late) == HelloOutcome(is_stale=True)


def test_two_that_echo_old_ids_of_each_other_connect() -> None:
    a, b = make(0, 1), make(1, 0)
    for each, other in ((a, b), (b, a)):
        each.on_hello(replace(other.hello(), session_id=4_711, echo_session_id=0))
    assert a.on_hello(b.hello()) == HelloOutcome(is_stale=True)
    assert b.on_hello(a.hello()).connection is not None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"protocol_version": 2}, "speaks protocol version 2"),
        ({"cluster_id": "other"}, "belongs to cluster 'other', this instance to 'default'"),
        ({"instance_count": 3}, "counts 3 instances, this instance 2"),
        ({"instance_index": 1}, "the address of instance 0 answers as instance 1"),
        ({"role": InstanceRole.FOLLOWER}, "instance 0 says that it is a follower"),
    ],
)
def test_instance_that_does_not_belong_is_refused_by_reason(
    changes: dict[str, Any], text: str
) -> None:
    b = make(1, 0)
    outcome = b.on_hello(replace(make(0, 1).hello(), **changes))
    assert text in outcome.refusal
    assert outcome.answer is None and outcome.connection is None


def test_announce_tells_the_instance_as_it_is() -> None:
    hello = make(0, 1, engine_name="fake", software_version="1.2").hello()
    assert isinstance(hello, Announce)
    assert (hello.engine, hello.software_version) == ("fake", "1.2")
    assert hello.role is InstanceRole.LEADER and not hello.is_connected
