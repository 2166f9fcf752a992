"""STUN mode against this project's own rendezvous server: runs, candidates, contested indices."""

from __future__ import annotations

import queue
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from comfy_cluster.config import ClusterConfig, RegistrationMode, Role
from comfy_cluster.discovery import Address, stun
from comfy_cluster.discovery.registry import IndexHeld, IndexTaken, Registration, Registry
from comfy_cluster.discovery.stun import StunDiscovery
from comfy_cluster.errors import DiscoveryError, RegistrationRefused
from comfy_cluster.runtime import build_cluster
from tests.integration.rendezvous_server import ServedRegistry, served_registry

KEY = "k" * 32
WAIT = 30.0  # seconds; a bound for a broken build


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServedRegistry]:
    with served_registry(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stun, "HELD_INTERVAL", 0.05)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_of(boot_id: str, address: str = "10.0.0.3") -> Registration:
    return Registration("c", 2, address, 9998, Role.FOLLOWER, boot_id=boot_id)


def client(server: ServedRegistry, *, key: str = KEY) -> Registry:
    return Registry(server.url, cluster_id="c", key=key)


def config_for(server: ServedRegistry, index: int, **more: object) -> ClusterConfig:
    settings: dict[str, object] = {
        "instance_count": 2,
        "instance_index": index,
        "role": Role.FOLLOWER if index else Role.LEADER,
        "registration_mode": RegistrationMode.STUN,
        "stun_servers": (server.url,),
        "cluster_id": "c",
        "key": KEY,
        "direct_listen_port": 9300 + index,
        "instance_address": "127.0.0.1",
        **more,
    }
    return ClusterConfig(**settings)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Looking:
    """A started discovery and what it reports."""

    discovery: StunDiscovery
    members: queue.Queue[tuple[int, Address]]
    failures: queue.Queue[DiscoveryError]


@pytest.fixture
def look() -> Iterator[Callable[[ClusterConfig], Looking]]:
    with ExitStack() as stack:

        def start(config: ClusterConfig) -> Looking:
            made = Looking(StunDiscovery(config), queue.Queue(), queue.Queue())
            made.discovery.start(
                lambda peer, address: made.members.put((peer, address)), made.failures.put
            )
            stack.callback(made.discovery.close)
            return made

        yield start


def test_a_run_registers_heartbeats_and_leaves(server: ServedRegistry) -> None:
    asking = client(server)
    granted = asking.register(run_of("one"))
    assert [each.hostname for each in granted.instances] == ["10.0.0.3"]
    assert granted.heartbeat_interval == pytest.approx(20.0)
    asking.heartbeat(2)
    listing = asking.instances()
    assert listing is not None
    assert asking.instances(listing.revision, wait=0.01) is None
    asking.leave(2, timeout=5.0)
    assert server.instances() == {}


def test_the_late_goodbye_of_an_earlier_run_ends_nothing(server: ServedRegistry) -> None:
    earlier, later = client(server), client(server)
    earlier.register(run_of("one"))
    later.register(run_of("two"))  # at the same place: the earlier one has ended
    earlier.leave(2, timeout=5.0)
    assert server.instances()["2"].boot_id == "two"
    with pytest.raises(IndexTaken):
        earlier.heartbeat(2)


def test_an_index_held_elsewhere_is_told_with_its_sign_of_life(server: ServedRegistry) -> None:
    holder, asking = client(server), client(server)
    holder.register(run_of("one"))
    with pytest.raises(IndexHeld, match=r"10\.0\.0\.3 port 9998") as first:
        asking.register(run_of("two", "10.0.0.4"))
    with pytest.raises(IndexHeld) as second:
        asking.register(run_of("two", "10.0.0.4"))
    assert first.value.last_ping == second.value.last_ping != ""
    holder.heartbeat(2)
    with pytest.raises(IndexHeld) as third:
        asking.register(run_of("two", "10.0.0.4"))
    assert third.value.last_ping != first.value.last_ping


def test_a_wrong_key_is_refused(server: ServedRegistry) -> None:
    client(server).register(run_of("one"))
    with pytest.raises(RegistrationRefused, match="refuses the key"):
        client(server, key="x" * 32).register(run_of("two"))


def test_a_full_cluster_is_no_wrong_key(tmp_path: Path) -> None:
    with served_registry(tmp_path, largest_cluster=1) as server:
        client(server).register(Registration("c", 0, "10.0.0.1", 1, Role.LEADER, boot_id="z"))
        with pytest.raises(RegistrationRefused, match="STUN_MAX_INSTANCES"):
            client(server).register(run_of("one"))


def test_two_find_each_other(
    server: ServedRegistry, look: Callable[[ClusterConfig], Looking]
) -> None:
    first = look(config_for(server, 0))
    wait_until(lambda: "0" in server.instances())
    second = look(config_for(server, 1))
    assert second.members.get(timeout=WAIT) == (0, ("127.0.0.1", 9300))
    assert first.members.get(timeout=WAIT) == (1, ("127.0.0.1", 9301))


def test_the_later_of_two_with_one_index_stops(
    tmp_path: Path, look: Callable[[ClusterConfig], Looking]
) -> None:
    with served_registry(tmp_path, instance_timeout=3.0) as server:
        first = look(config_for(server, 1))
        wait_until(lambda: "1" in server.instances())
        lease = server.instances()["1"]
        second = look(config_for(server, 1, instance_address="10.0.0.9"))
        assert isinstance(second.failures.get(timeout=WAIT), IndexTaken)
        assert server.instances()["1"].boot_id == lease.boot_id
        assert first.failures.empty()


def test_the_index_of_one_that_died_elsewhere_is_free_when_it_is_late(
    tmp_path: Path, look: Callable[[ClusterConfig], Looking]
) -> None:
    with served_registry(tmp_path, instance_timeout=3.0) as server:
        client(server).register(
            Registration("c", 1, "10.0.0.9", 9998, Role.FOLLOWER, boot_id="dead")
        )
        later = look(config_for(server, 1))
        wait_until(lambda: server.instances().get("1") is not None)
        wait_until(lambda: server.instances()["1"].address == "127.0.0.1")
        assert later.failures.empty()


def test_a_server_that_loses_the_richer_routes_is_asked_by_the_others(
    tmp_path: Path, look: Callable[[ClusterConfig], Looking]
) -> None:
    with served_registry(tmp_path, instance_timeout=1.5) as server:
        server.has_v1 = False
        old = client(server)
        old.register(run_of("one"))
        old.heartbeat(2)
        server.has_v1 = True
        assert old.register(run_of("one")).heartbeat_interval == pytest.approx(0.5)
        look(config_for(server, 1))
        wait_until(lambda: "1" in server.instances())
        run = server.instances()["1"].boot_id
        server.has_v1 = False
        wait_until(lambda: [each.boot_id for each in server.instances().values()] != [run])
        wait_until(lambda: "1" in server.instances())


def test_heartbeats_keep_it_registered(
    tmp_path: Path, look: Callable[[ClusterConfig], Looking]
) -> None:
    with served_registry(tmp_path, instance_timeout=1.5) as server:
        look(config_for(server, 1))
        wait_until(lambda: "1" in server.instances())
        first = server.instances()["1"]
        wait_until(lambda: server.instances()["1"].last_ping_at > first.last_ping_at + 2.0)
        assert server.instances()["1"].generation == first.generation


def test_the_responder_is_asked_through_the_data_socket(tmp_path: Path) -> None:
    udp_port, own_port = free_udp_port(), free_udp_port()
    with served_registry(tmp_path, udp_port=udp_port) as server:
        config = config_for(
            server, 0, single_host=True, direct_listen_port=own_port, instance_address=None
        )
        responder = server.service.responder
        assert responder is not None
        with build_cluster(config):
            wait_until(lambda: responder.stats().answers > 0)
            wait_until(lambda: "0" in server.instances())
            [published] = server.instances()["0"].candidates
            assert (published["address"], published["port"]) == ("127.0.0.1", own_port)
        assert server.instances() == {}


def test_behind_a_nat_the_reflexive_candidate_is_published(tmp_path: Path) -> None:
    """`ask` stands for the NAT: the way through the real socket is tested in tests/netlab."""

    class Seen:
        def result(self, timeout: float | None = None) -> Address:
            return "203.0.113.5", 40_000

        def cancel(self) -> None: ...

    def ask(server: Address, *, timeout: float) -> Seen:
        assert server == ("127.0.0.1", udp_port)
        return Seen()

    udp_port = free_udp_port()
    with served_registry(tmp_path, udp_port=udp_port) as server:
        discovery = StunDiscovery(config_for(server, 0), ask_reflexive=ask)
        discovery.start(lambda *_: None, lambda error: None)
        try:
            wait_until(
                lambda: any(
                    (each["type"], each["address"], each["port"])
                    == ("srflx", "203.0.113.5", 40_000)
                    for lease in server.instances().values()
                    for each in lease.candidates
                )
            )
        finally:
            discovery.close()


def free_udp_port() -> int:
    while True:
        port = random.randrange(18_000, 32_000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
