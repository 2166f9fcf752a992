"""Discovery by rendezvous servers: registering, listing, and going on when they are away."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import pytest

from comfy_cluster.config import ClusterConfig, RegistrationMode, Role
from comfy_cluster.discovery import Address, stun
from comfy_cluster.discovery.registry import Listing, Registered, Registration, Registry
from comfy_cluster.discovery.stun import StunDiscovery
from comfy_cluster.errors import DiscoveryError
from tests.unit.discovery.rendezvous import Rendezvous

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one


class Looking:
    """A discovery and what it reports."""

    def __init__(
        self,
        *urls: str,
        index: int = 1,
        count: int = 3,
        key: str = "k" * 32,
        is_observer: bool = False,
    ) -> None:
        config = ClusterConfig(
            instance_count=count,
            instance_index=index,
            role=Role.FOLLOWER if index else Role.LEADER,
            registration_mode=RegistrationMode.STUN,
            stun_servers=urls,
            cluster_id="c",
            key=key,
            direct_listen_port=9000 + index,
        )
        self.members: queue.Queue[tuple[int, Address]] = queue.Queue()
        self.failures: queue.Queue[DiscoveryError] = queue.Queue()
        self.discovery = StunDiscovery(config, is_observer=is_observer)

    def start(self) -> None:
        self.discovery.start(
            lambda peer, address: self.members.put((peer, address)), self.failures.put
        )

    def next_member(self) -> tuple[int, Address]:
        return self.members.get(timeout=WAIT)


@contextmanager
def looking(*urls: str, index: int = 1, count: int = 3, key: str = "k" * 32) -> Iterator[Looking]:
    made = Looking(*urls, index=index, count=count, key=key)
    made.start()
    try:
        yield made
    finally:
        made.discovery.close()


def trouble_of(one: Looking, peer: int) -> str:
    return one.discovery.troubles().get(peer, "")


def wait_until(condition: Callable[[], bool], *, news: Rendezvous | None = None) -> None:
    """`news`: a server that gets some meanwhile; one that holds the question answers it then."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        if news is not None:
            news.put(6, address=f"10.0.1.{len(news.asked) % 250}")
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_RETRY_DELAY", "LARGEST_RETRY_DELAY", "FORMING_INTERVAL"):
        monkeypatch.setattr(stun, name, 0.01)


@pytest.fixture(params=[False, True])
def server(request: pytest.FixtureRequest) -> Iterator[Rendezvous]:
    """Of both kinds: polled, and one that holds the question until there is news."""
    with Rendezvous(tells_revisions=request.param) as made:
        yield made


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


def test_a_name_that_cannot_be_resolved_is_told(server: Rendezvous) -> None:
    server.put(0, address="nowhere.invalid")
    with looking(server.url) as one:
        server.wait_for("GET /instances/c")
        wait_until(lambda: "nowhere.invalid cannot be resolved" in trouble_of(one, 0))


def test_who_is_heard_is_reported_once(server: Rendezvous) -> None:
    with looking(server.url) as one:
        for _ in range(2):
            one.discovery.on_heard(2, ("10.0.0.4", 9))
        assert one.next_member() == (2, ("10.0.0.4", 9))
        assert one.members.empty()


LOOKING = ("10.0.0.5", 9)  # where one who looks says HELLO


def test_an_observer_is_told_until_the_member_is_there(server: Rendezvous) -> None:
    with looking(server.url) as one:
        one.discovery.on_heard(2, LOOKING, is_observer=True)
        assert one.next_member() == (2, LOOKING)
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
