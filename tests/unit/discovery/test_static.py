"""Static discovery: literals at once, names on a thread of their own, again after a loss."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from comfy_cluster.discovery import Address, StaticDiscovery
from comfy_cluster.discovery.static import resolve_ipv4, resolve_ipv6
from comfy_cluster.errors import ConfigError

WAIT = 10.0  # seconds; a bound for a broken build, never waited for in a good one
RETRY_DELAY = 0.001  # seconds

OWN_ADDRESSES = {"127.0.0.1", "::1", "10.0.0.1"}

Members = queue.Queue[tuple[int, Address]]


class FakeNames:
    """A name server: answers from a table that tests change; counts what it is asked."""

    def __init__(self, **addresses: str) -> None:
        self.addresses = addresses
        self.asked: queue.Queue[str] = queue.Queue()

    def resolve(self, hostname: str, port: int) -> Address:
        self.asked.put(hostname)
        address = self.addresses.get(hostname)
        if address is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return address, port


@pytest.fixture
def members() -> Members:
    return queue.Queue()


@pytest.fixture
def start(members: Members) -> Iterator[Callable[..., StaticDiscovery]]:
    """Starts a discovery that reports into `members`."""
    started: list[StaticDiscovery] = []

    def start_one(
        entries: list[tuple[str, int]], names: FakeNames, *, instance_index: int = 0
    ) -> StaticDiscovery:
        discovery = StaticDiscovery(
            entries,
            instance_index,
            resolve=names.resolve,
            retry_delay=RETRY_DELAY,
            own_addresses=lambda: OWN_ADDRESSES,
        )
        started.append(discovery)
        discovery.start(lambda peer, address: members.put((peer, address)))
        return discovery

    yield start_one
    for discovery in started:
        discovery.close()


def discovery_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "comfy-cluster-discovery"]


def test_literals_are_reported_at_once_and_need_no_thread(
    start: Callable[..., StaticDiscovery], members: Members
) -> None:
    start([("10.0.0.1", 9998), ("::1", 9999), ("10.0.0.3", 9998)], FakeNames(), instance_index=1)
    assert members.get_nowait() == (0, ("10.0.0.1", 9998))
    assert members.get_nowait() == (2, ("10.0.0.3", 9998))
    assert members.empty() and discovery_threads() == []


@pytest.mark.parametrize("own", ["10.0.0.9", "elsewhere"])
def test_an_own_entry_that_is_elsewhere_is_told(
    own: str, start: Callable[..., StaticDiscovery], caplog: pytest.LogCaptureFixture
) -> None:
    names = FakeNames(elsewhere="10.0.0.9", peer="10.0.0.2")
    start([(own, 9998), ("peer", 9998)], names)
    assert names.asked.get(timeout=WAIT)
    while names.asked.get(timeout=WAIT) != "peer":
        pass
    (text,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert f"entry 0 of COMFY_CLUSTER_UDP_HOSTNAMES ({own}:9998) is this instance's own" in text
    assert "10.0.0.9 is no address of this machine" in text


@pytest.mark.parametrize("own", ["10.0.0.1", "here", "nowhere"])
def test_an_own_entry_that_is_here_or_unknown_is_not(
    own: str, start: Callable[..., StaticDiscovery], caplog: pytest.LogCaptureFixture
) -> None:
    names = FakeNames(here="10.0.0.1", peer="10.0.0.2")
    start([(own, 9998), ("peer", 9998)], names)
    while names.asked.get(timeout=WAIT) != "peer":
        pass
    assert not caplog.records


def test_names_are_looked_up_when_started_and_not_before(
    start: Callable[..., StaticDiscovery], members: Members
) -> None:
    names = FakeNames(leader="10.0.0.1", follower="10.0.0.2")
    entries = [("leader", 9998), ("follower", 9999)]
    StaticDiscovery(entries, 0, resolve=names.resolve)
    assert names.asked.empty()
    start(entries, names)
    assert members.get(timeout=WAIT) == (1, ("10.0.0.2", 9999))


def test_a_name_that_fails_is_named_once_and_tried_again(
    start: Callable[..., StaticDiscovery], members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    names = FakeNames()
    discovery = start([("10.0.0.1", 9998), ("not-yet", 9999)], names)
    for _ in range(3):
        assert names.asked.get(timeout=WAIT) == "not-yet"
    expected = (
        "cannot resolve entry 1 of COMFY_CLUSTER_UDP_HOSTNAMES (not-yet:9999): "
        "Name or service not known"
    )
    assert discovery.troubles() == {1: expected}
    names.addresses["not-yet"] = "10.0.0.7"
    assert members.get(timeout=WAIT) == (1, ("10.0.0.7", 9999))
    assert discovery.troubles() == {}
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warnings == [f"! {expected}; trying again"]


def test_a_name_that_no_lookup_takes_is_trouble_and_the_others_are_still_found(
    start: Callable[..., StaticDiscovery], members: Members
) -> None:
    def resolve(hostname: str, port: int) -> Address:
        hostname.encode("idna")  # as socket.getaddrinfo does
        return names.resolve(hostname, port)

    names = FakeNames(good="10.0.0.3")
    entries = [("10.0.0.1", 9998), ("a..b", 9999), ("good", 9998)]
    discovery = StaticDiscovery(
        entries, 0, resolve=resolve, retry_delay=RETRY_DELAY, own_addresses=lambda: OWN_ADDRESSES
    )
    with closing(discovery):
        discovery.start(lambda peer, address: members.put((peer, address)))
        assert members.get(timeout=WAIT) == (2, ("10.0.0.3", 9998))
        expected = "cannot resolve entry 1 of COMFY_CLUSTER_UDP_HOSTNAMES (a..b:9999): "
        assert discovery.troubles()[1].startswith(expected)


def test_an_address_that_the_transport_cannot_reach_is_trouble_until_it_is_another(
    members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    refused: queue.Queue[Address] = queue.Queue()

    def on_member(peer: int, address: Address) -> None:
        if address[0].startswith("fe80"):
            refused.put(address)
            raise ConfigError("a link-local address")
        members.put((peer, address))

    names = FakeNames(follower="fe80::2")
    entries = [("10.0.0.1", 9998), ("follower", 9999)]
    discovery = StaticDiscovery(
        entries,
        0,
        resolve=names.resolve,
        retry_delay=RETRY_DELAY,
        own_addresses=lambda: OWN_ADDRESSES,
    )
    with closing(discovery):
        discovery.start(on_member)
        for _ in range(3):
            refused.get(timeout=WAIT)
        expected = (
            "cannot use entry 1 of COMFY_CLUSTER_UDP_HOSTNAMES (follower:9999):"
            " a link-local address"
        )
        assert discovery.troubles() == {1: expected}
        names.addresses["follower"] = "10.0.0.2"
        assert members.get(timeout=WAIT) == (1, ("10.0.0.2", 9999))
        while discovery.troubles():
            names.asked.get(timeout=WAIT)
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warnings == [f"! {expected}; trying again"]


def test_an_address_goes_back_to_the_one_that_had_it_when_its_taker_is_elsewhere(
    start: Callable[..., StaticDiscovery], members: Members
) -> None:
    names = FakeNames(late="10.0.0.2")  # what the name of the other one stood for before
    discovery = start([("10.0.0.1", 9998), ("10.0.0.2", 9998), ("late", 9998)], names)
    assert members.get(timeout=WAIT) == (1, ("10.0.0.2", 9998))
    assert members.get(timeout=WAIT) == (2, ("10.0.0.2", 9998))
    for _ in range(3):
        names.asked.get(timeout=WAIT)
    assert discovery.troubles() == {
        1: "entry 1 of COMFY_CLUSTER_UDP_HOSTNAMES (10.0.0.2:9998) is at 10.0.0.2:9998,"
        " and so is entry 2"
    }
    names.addresses["late"] = "10.0.0.3"
    assert members.get(timeout=WAIT) == (2, ("10.0.0.3", 9998))
    assert members.get(timeout=WAIT) == (1, ("10.0.0.2", 9998))
    assert discovery.troubles() == {} and members.empty()


def test_the_same_address_is_reported_once(
    start: Callable[..., StaticDiscovery], members: Members
) -> None:
    names = FakeNames(follower="10.0.0.2")
    start([("10.0.0.1", 9998), ("follower", 9999)], names)
    for _ in range(3):
        names.asked.get(timeout=WAIT)
    names.addresses["follower"] = "10.0.0.5"
    assert members.get(timeout=WAIT) == (1, ("10.0.0.2", 9999))
    assert members.get(timeout=WAIT) == (1, ("10.0.0.5", 9999))
    assert members.empty()


def test_a_lost_peer_is_looked_up_again_a_connected_one_is_not(
    start: Callable[..., StaticDiscovery], members: Members
) -> None:
    names = FakeNames(first="10.0.0.2", second="10.0.0.3")
    discovery = start([("10.0.0.1", 9998), ("first", 9999), ("second", 9999)], names)
    assert {members.get(timeout=WAIT)[0] for _ in range(2)} == {1, 2}
    discovery.on_peer_connected(1)
    discovery.on_peer_connected(2)
    names.addresses.update(first="10.0.1.2", second="10.0.1.3")
    discovery.on_peer_lost(2)
    assert members.get(timeout=WAIT) == (2, ("10.0.1.3", 9999))
    assert members.empty()


def test_a_lost_peer_is_reported_again_where_its_name_leads_as_before(
    start: Callable[..., StaticDiscovery], members: Members
) -> None:
    """That address may have been another one's meanwhile."""
    discovery = start([("10.0.0.1", 9998), ("first", 9999)], FakeNames(first="10.0.0.2"))
    for _ in range(2):
        assert members.get(timeout=WAIT) == (1, ("10.0.0.2", 9999))
        discovery.on_peer_connected(1)
        discovery.on_peer_lost(1)
    assert members.get(timeout=WAIT) == (1, ("10.0.0.2", 9999))


def test_closing_ends_the_thread_and_twice_is_fine(start: Callable[..., StaticDiscovery]) -> None:
    names = FakeNames()
    discovery = start([("10.0.0.1", 9998), ("nowhere", 9999)], names)
    names.asked.get(timeout=WAIT)
    threads = discovery_threads()
    discovery.close()
    discovery.close()
    for thread in threads:
        thread.join(WAIT)
    assert len(threads) == 1 and discovery_threads() == []


def test_closing_does_not_wait_for_a_silent_name_server(members: Members) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()

    def resolve(hostname: str, port: int) -> Address:
        is_asked.set()
        may_answer.wait(WAIT)
        return "10.0.0.2", port

    discovery = StaticDiscovery([("10.0.0.1", 1), ("slow", 2)], 0, resolve=resolve)
    with closing(discovery):
        discovery.start(lambda peer, address: members.put((peer, address)))
        assert is_asked.wait(WAIT)
    threads = discovery_threads()
    assert len(threads) == 1 and threads[0].daemon
    may_answer.set()
    threads[0].join(WAIT)
    assert members.empty()  # what is found after closing is told to nobody


def test_a_name_without_an_ipv6_address_is_resolved_to_its_ipv4_address() -> None:
    """An instance that listens on `::` reaches it: a literal stands for such a name here."""
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("127.0.0.1", 1, family=socket.AF_INET6)
    assert resolve_ipv6("127.0.0.1", 9998) == ("127.0.0.1", 9998)
    with pytest.raises(UnicodeError):
        resolve_ipv6("a..b", 9998)


def test_localhost_is_resolved_to_a_literal() -> None:
    assert resolve_ipv4("localhost", 9998) == ("127.0.0.1", 9998)
