"""Discovery by rendezvous servers: registering, listing, and going on when they are away."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from typing import Any, NoReturn

import pytest

from comfy_cluster.discovery import stun
from comfy_cluster.discovery.registry import Listing, Registered, Registration, Registry
from tests.unit.discovery.looking import WAIT, Looking, looking, trouble_of, wait_until
from tests.unit.discovery.rendezvous import Rendezvous


def test_it_registers_and_finds_the_others(server: Rendezvous) -> None:
    server.put(0)
    with looking(server.url) as one:
        assert one.next_member() == (0, ("10.0.0.9", 9998))
        assert server.instances["c", "1"]["port"] == 9001
        assert server.instances["c", "1"]["address"] == "127.0.0.1"  # the way to the server
        server.put(2, address="10.0.0.8")
        assert one.next_member() == (2, ("10.0.0.8", 9998))
        server.put(7)  # of another instance count
    server.wait_for("DELETE /instance/c/1")
    assert one.members.empty()


def test_two_find_each_other(server: Rendezvous) -> None:
    with looking(server.url, index=0, count=2) as one, looking(server.url, count=2) as other:
        assert one.next_member() == (1, ("127.0.0.1", 9001))
        assert other.next_member() == (0, ("127.0.0.1", 9000))


def test_what_any_server_lists_counts() -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(Rendezvous()) for _ in range(2))
        first.put(0)
        second.put(2)
        with looking(first.url, second.url) as one:
            assert sorted(one.next_member()[0] for _ in range(2)) == [0, 2]
        assert not first.instances.get(("c", "1")) and not second.instances.get(("c", "1"))


def test_it_registers_again_when_it_was_forgotten(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stun, "HEARTBEAT_INTERVAL", 0.02)
    with looking(server.url):
        server.wait_for("POST /heartbeat/c/1")
        server.forget_all()
        server.wait_for("POST /register-instance", count=2)


def test_it_goes_on_trying_and_joins_when_the_server_is_back() -> None:
    with Rendezvous() as gone:
        port = gone.port
    with looking(f"http://127.0.0.1:{port}") as one:
        wait_until(lambda: "Failed to register with STUN server" in trouble_of(one, 0))
        with Rendezvous(port=port) as back:
            back.put(0)
            assert one.next_member() == (0, ("10.0.0.9", 9998))


def test_troubles_say_who_is_not_registered(server: Rendezvous) -> None:
    server.put(0)
    with looking(server.url) as one:
        one.next_member()
        one.discovery.on_peer_connected(0)
        assert one.discovery.troubles() == {2: f"it is not registered at {server.url}"}


def test_a_taken_index_ends_it(server: Rendezvous) -> None:
    server.failing = (409, {"error": "instance 1 is alive elsewhere"})
    with looking(server.url) as one:
        error = one.failures.get(timeout=WAIT)
    assert "Failed to register with STUN server" in str(error)
    assert "alive elsewhere" in str(error)


def test_a_server_that_forgot_the_whole_cluster_is_registered_with_again(
    server: Rendezvous,
) -> None:
    server.hides_unknown = True
    with looking(server.url) as one:
        server.wait_for("GET /instances/c")
        server.forget_all()
        server.wait_for("POST /register-instance", count=2)
        server.put(0)
        assert one.next_member() == (0, ("10.0.0.9", 9998))


def test_a_server_that_says_the_index_is_taken_ends_no_member(server: Rendezvous) -> None:
    with looking(server.url) as one:
        server.wait_for("GET /instances/c")
        server.failing = (409, {"error": "instance 1 is alive elsewhere"})
        wait_until(lambda: "alive elsewhere" in trouble_of(one, 0), news=server)
        server.failing = None
        server.put(0)
        assert one.next_member()[0] == 0
        assert one.failures.empty()


def test_an_outage_is_over_once_the_server_answers(server: Rendezvous) -> None:
    with looking(server.url) as one:
        (asked,) = one.discovery._servers
        for _ in range(2):
            server.failing = (503, {"error": "the store is away"})
            wait_until(lambda: "the store is away" in asked.trouble, news=server)
            server.failing = None
            wait_until(lambda: not asked.trouble, news=server)


def test_who_closes_while_it_registers_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rendezvous() as server:
        one = Looking(server.url)
        register = Registry.register

        def close_first(registry: Registry, registration: Registration) -> Registered:
            one.discovery.close()
            return register(registry, registration)

        monkeypatch.setattr(Registry, "register", close_first)
        one.start()
        server.wait_for("DELETE /instance/c/1")
        assert not server.instances


def test_nothing_that_a_server_answers_ends_the_search(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    instances = Registry.instances
    broken = iter([True, True, False])

    def odd(registry: Registry, *arguments: Any, **options: Any) -> Listing | None:
        if next(broken, False):
            raise ZeroDivisionError
        return instances(registry, *arguments, **options)

    monkeypatch.setattr(Registry, "instances", odd)
    server.put(0)
    with looking(server.url) as one:
        assert one.next_member()[0] == 0


STALLS = ["silence", "headers", "body"]
CLOSING = 2.0  # seconds; closing has one, and the rest is for a busy machine


def seconds_to_close(one: Looking) -> float:
    began = time.monotonic()
    one.discovery.close()
    return time.monotonic() - began


@pytest.mark.parametrize("how", STALLS)
def test_closing_does_not_wait_for_a_server_that_stalls(server: Rendezvous, how: str) -> None:
    one = Looking(server.url)
    one.start()
    server.wait_for("GET /instances/c")
    server.stalling = how
    asked = sum(each.startswith("GET") for each in server.asked)
    server.put(0)  # news: it asks again
    server.wait_for("GET /instances/c", count=asked + 1)
    assert seconds_to_close(one) < CLOSING
    server.wait_for("DELETE /instance/c/1")  # it has tried


@pytest.mark.parametrize("how", STALLS)
def test_closing_does_not_wait_for_a_server_that_never_registered_it(how: str) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Rendezvous()) for _ in range(3)]
        one = Looking(*(each.url for each in servers))
        for each in servers:
            each.stalling = how
        one.start()
        for each in servers:
            each.wait_for("PUT /v1/clusters/c/instances")
        assert seconds_to_close(one) < CLOSING
        assert seconds_to_close(one) < 0.5, "the second time there is nothing to wait for"


def test_closing_ends_the_wait_for_news_and_leaves() -> None:
    with Rendezvous(tells_revisions=True) as server:
        server.put(0)
        one = Looking(server.url, count=2)
        one.start()
        one.next_member()
        server.wait_for("GET /instances/c?wait")
        assert seconds_to_close(one) < CLOSING
        assert ("c", "1") not in server.instances
        (asked,) = one.discovery._servers
        assert asked.thread is not None and not asked.thread.is_alive()


def test_closing_says_nothing_of_what_it_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    with Rendezvous(tells_revisions=True) as server, looking(server.url):
        server.wait_for("GET /instances/c?wait")
    assert not [each for each in caplog.records if each.levelname == "WARNING"]


def test_closing_does_not_wait_for_a_name_server(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Looking(server.url)
    one.start()
    server.wait_for("GET /instances/c")
    answered = threading.Event()

    def silent(*_: object, **__: object) -> NoReturn:
        answered.wait(WAIT)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        assert seconds_to_close(one) < CLOSING
    finally:
        answered.set()
