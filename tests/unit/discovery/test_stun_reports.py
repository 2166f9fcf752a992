"""What a discovery by rendezvous servers reports: where peers are, once, and wherever they move."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import pytest

from comfy_cluster.discovery import Address, stun
from tests.unit.discovery.looking import WAIT, Looking, looking, trouble_of, wait_until
from tests.unit.discovery.rendezvous import Rendezvous


def test_a_name_that_cannot_be_resolved_is_told(server: Rendezvous) -> None:
    server.put(0, address="nowhere.invalid")
    with looking(server.url) as one:
        server.wait_for("GET /instances/c")
        wait_until(lambda: "nowhere.invalid cannot be resolved" in trouble_of(one, 0))


def test_a_name_that_leads_somewhere_later_is_found_without_news_of_the_server(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container is registered before its name server knows it."""
    monkeypatch.setattr(stun, "FIRST_LOOKUP_DELAY", 0.01)
    server.put(0, address="pod.internal")
    lookups: list[str] = []

    def resolve(hostname: str, port: int) -> Address:
        lookups.append(hostname)
        if len(lookups) < 4:
            raise OSError("no such name yet")
        return "10.0.0.9", port

    one = Looking(server.url)
    monkeypatch.setattr(one.discovery, "_resolve", resolve)
    one.start()
    try:
        assert one.next_member() == (0, ("10.0.0.9", 9998))
        assert "resolved" not in trouble_of(one, 0)
    finally:
        one.discovery.close()


@pytest.mark.parametrize("address", ["fd00::9", "fe80::1%a..b", "nul\0.internal", "a..b"])
def test_an_address_that_is_none_here_is_trouble_of_that_peer_alone(
    server: Rendezvous, address: str
) -> None:
    server.put(0, address=address)
    with looking(server.url) as one:
        wait_until(lambda: "cannot be resolved" in trouble_of(one, 0))
        server.put(2, address="10.0.0.8")
        assert one.next_member() == (2, ("10.0.0.8", 9998))
        server.put(0, address="10.0.0.7")
        assert one.next_member() == (0, ("10.0.0.7", 9998))


def test_a_slow_name_server_holds_up_neither_heartbeats_nor_other_peers_nor_the_leaving(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stun, "HEARTBEAT_INTERVAL", 0.02)
    server.put(0, address="pod.internal")
    is_asked, may_answer = threading.Event(), threading.Event()

    def resolve(hostname: str, port: int) -> Address:
        if hostname == "pod.internal":
            is_asked.set()
            may_answer.wait(WAIT)
        return "10.0.0.9", port

    one = Looking(server.url)
    monkeypatch.setattr(one.discovery, "_resolve", resolve)
    one.start()
    try:
        assert is_asked.wait(WAIT)
        server.put(2, address="10.0.0.9")
        assert one.next_member() == (2, ("10.0.0.9", 9998))
        server.wait_for("POST /heartbeat/c/1", count=2)
        one.discovery.close()
        server.wait_for("DELETE /instance/c/1")
    finally:
        may_answer.set()
        one.discovery.close()


def test_where_it_was_heard_is_not_outdone_by_a_list_that_is_as_before(
    server: Rendezvous,
) -> None:
    """Behind NAT a peer may be listed where it cannot be reached, and say HELLO from elsewhere."""
    server.put(0)
    with looking(server.url) as one:
        assert one.next_member() == (0, ("10.0.0.9", 9998))
        one.discovery.on_heard(0, LOOKING)
        assert one.next_member() == (0, LOOKING)
        server.put(2, address="10.0.0.8")
        assert one.next_member() == (2, ("10.0.0.8", 9998))
        one.discovery.on_peer_connected(0)
        one.discovery.on_peer_lost(0)  # it may be back in a moment, and not where it is listed
        server.put(2, address="10.0.0.7")
        assert one.next_member() == (2, ("10.0.0.7", 9998))


def test_a_name_that_is_listed_anew_is_looked_up_anew(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine has another address now, and it has not been missed yet."""
    addresses = {"pod.internal": "10.0.0.9"}
    server.put(0, address="pod.internal")
    one = Looking(server.url)
    monkeypatch.setattr(one.discovery, "_resolve", lambda name, port: (addresses[name], port))
    one.start()
    try:
        assert one.next_member() == (0, ("10.0.0.9", 9998))
        one.discovery.on_peer_connected(0)
        addresses["pod.internal"] = "10.0.0.77"
        server.put(0, address="pod.internal")
        server.wait_for("GET", count=len(server.asked) + 2)
        one.discovery.on_peer_lost(0)
        while one.next_member() != (0, ("10.0.0.77", 9998)):
            pass
    finally:
        one.discovery.close()


def test_who_is_heard_is_reported_once(server: Rendezvous) -> None:
    with looking(server.url) as one:
        for _ in range(2):
            one.discovery.on_heard(2, ("10.0.0.4", 9))
        assert one.next_member() == (2, ("10.0.0.4", 9))
        assert one.members.empty()


def test_who_is_heard_before_the_start_is_reported_when_it_is_heard_again(
    server: Rendezvous,
) -> None:
    """Its HELLOs may come as soon as the transport's socket is there."""
    one = Looking(server.url)
    one.discovery.on_heard(2, ("10.0.0.4", 9))
    one.start()
    one.discovery.on_heard(2, ("10.0.0.4", 9))
    try:
        assert one.next_member() == (2, ("10.0.0.4", 9))
    finally:
        one.discovery.close()


LOOKING = ("10.0.0.5", 9)  # where one who looks says HELLO


def test_an_observer_is_told_until_the_member_is_there(server: Rendezvous) -> None:
    with looking(server.url) as one:
        for _ in range(2):
            one.discovery.on_heard(2, LOOKING, is_observer=True)
        assert one.next_member() == (2, LOOKING)
        one.discovery.on_heard(2, ("10.0.0.6", 9), is_observer=True)  # the next one, elsewhere
        assert one.next_member() == (2, ("10.0.0.6", 9))
        server.put(2)
        assert one.next_member() == (2, ("10.0.0.9", 9998))
        one.discovery.on_heard(2, LOOKING, is_observer=True)
        assert one.members.empty()


def test_an_observer_moves_no_member_and_takes_no_member_s_address(server: Rendezvous) -> None:
    server.put(0)
    with looking(server.url) as one:
        assert one.next_member() == (0, ("10.0.0.9", 9998))
        one.discovery.on_heard(0, LOOKING, is_observer=True)
        one.discovery.on_heard(2, ("10.0.0.9", 9998), is_observer=True)
        assert one.members.empty()
        one.discovery.on_heard(2, LOOKING)
        assert one.next_member() == (2, LOOKING)
        one.discovery.on_heard(2, ("10.0.0.6", 9), is_observer=True)
        assert one.members.empty()


def test_an_observer_is_told_in_the_place_of_a_member_that_is_listed_no_more(
    server: Rendezvous,
) -> None:
    server.put(0)
    with looking(server.url) as one:
        one.next_member()
        server.remove(0)
        wait_until(lambda: "is not registered" in trouble_of(one, 0))
        one.discovery.on_heard(0, LOOKING, is_observer=True)
        assert one.next_member() == (0, LOOKING)
        server.put(0)
        assert one.next_member() == (0, ("10.0.0.9", 9998))


def test_a_lost_peer_is_looked_for_at_its_new_address(server: Rendezvous) -> None:
    server.put(0)
    with looking(server.url) as one:
        one.next_member()
        one.discovery.on_peer_connected(0)
        server.put(0, address="10.0.0.77")
        one.discovery.on_peer_lost(0)
        while one.next_member() != (0, ("10.0.0.77", 9998)):
            pass


def test_who_moved_while_it_was_connected_is_looked_for_there_once_it_is_lost(
    server: Rendezvous,
) -> None:
    server.put(0)
    with looking(server.url) as one:
        assert one.next_member() == (0, ("10.0.0.9", 9998))
        one.discovery.on_peer_connected(0)
        server.put(0, address="10.0.0.77")
        server.wait_for("GET", count=len(server.asked) + 2)  # it has the list, and asks again
        assert one.members.empty()
        one.discovery.on_peer_lost(0)
        assert one.next_member() == (0, ("10.0.0.77", 9998))


def test_servers_that_list_a_peer_differently_do_not_outdo_where_it_was_heard() -> None:
    heard = ("203.0.113.9", 4444)
    with Rendezvous() as here, Rendezvous() as there, looking(here.url, there.url) as one:
        here.put(0, address="10.0.0.5")
        there.put(0, address="192.168.1.5")
        reported = {one.next_member(), one.next_member()}
        assert reported == {(0, ("10.0.0.5", 9998)), (0, ("192.168.1.5", 9998))}
        one.discovery.on_heard(0, heard)
        assert one.next_member() == (0, heard)
        for each in (here, there):
            each.wait_for("GET", count=len(each.asked) + 3)
        assert one.members.empty()
        there.put(0, address="192.168.1.6")
        assert one.next_member() == (0, ("192.168.1.6", 9998))


def test_of_two_that_swap_places_both_are_looked_for_where_they_are(server: Rendezvous) -> None:
    places = {0: ("10.0.0.4", 9998), 2: ("10.0.0.5", 9998)}
    for peer, (hostname, _) in places.items():
        server.put(peer, address=hostname)
    with looking(server.url) as one:
        assert dict(one.next_member() for _ in places) == places
        for peer in places:
            one.discovery.on_peer_connected(peer)
        server.put(0, address="10.0.0.5")
        server.put(2, address="10.0.0.4")
        (its,) = one.discovery._servers
        wait_until(lambda: len(its.found) == 2 and its.found != places)
        wait_until(lambda: its.found == {0: places[2], 2: places[0]})
        for peer in places:
            one.discovery.on_peer_lost(peer)
        assert dict(one.next_member() for _ in places) == {0: places[2], 2: places[0]}


def test_a_loss_while_a_turn_ends_is_not_slept_through(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Looking(server.url, count=2)
    one.discovery.on_peer_connected(0)
    turn, turns = one.discovery._turn, [0]

    def turn_and_lose(server: Any) -> float:
        delay = turn(server)
        turns[0] += 1
        if turns[0] == 1:
            assert delay > WAIT / 2, "all are connected: it would wait for long"
            one.discovery.on_peer_lost(0)
        return delay

    monkeypatch.setattr(one.discovery, "_turn", turn_and_lose)
    one.start()
    try:
        server.wait_for("GET", count=2, timeout=WAIT / 2)
    finally:
        one.discovery.close()


def test_reports_of_one_peer_do_not_overtake_each_other(server: Rendezvous) -> None:
    """The last one is what the transport keeps."""
    told: list[Address] = []
    with ExitStack() as stack:
        one = Looking(server.url, count=2)
        stack.callback(one.discovery.close)

        def on_member(peer: int, address: Address) -> None:
            if not told:  # by the server's thread
                heard = threading.Thread(target=one.discovery.on_heard, args=(0, LOOKING))
                heard.start()
                heard.join(0.2)  # in a good build it waits for this report
            told.append(address)

        one.discovery.start(on_member, one.failures.put)
        server.put(0)
        wait_until(lambda: len(told) >= 2)
    assert told[:2] == [("10.0.0.9", 9998), LOOKING]


@pytest.mark.parametrize("is_registered", [True, False])
def test_an_observer_leaves_no_trace(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch, is_registered: bool
) -> None:
    """Not where its index is registered from elsewhere either."""
    monkeypatch.setattr(stun, "HEARTBEAT_INTERVAL", 0.02)
    server.put(0)
    if is_registered:
        server.put(1, address="10.0.0.8")
    before = dict(server.instances)
    observer = Looking(server.url, is_observer=True)
    observer.start()
    assert observer.next_member() == (0, ("10.0.0.9", 9998))
    assert "is not registered at" in observer.discovery.troubles()[2]
    observer.discovery.close()
    assert server.instances == before
    assert {each.split()[0] for each in server.asked} == {"GET"}


def test_an_observer_with_a_wrong_key_says_so(server: Rendezvous) -> None:
    with looking(server.url):
        server.wait_for("POST /register-instance")
        observer = Looking(server.url, is_observer=True, key="x" * 32)
        observer.start()
        wait_until(lambda: "refuses the key" in trouble_of(observer, 0))
        observer.discovery.close()
