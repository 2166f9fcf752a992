"""HTTPS by a real Caddy with the project's own Caddyfile: one server, and two with one Redis."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from comfy_cluster.config import Role
from comfy_cluster.discovery.registry import NotRegistered, Registration, Registry
from tests.stun_server.asking import KEY, TIMEOUT, ask, register, registration, until, waiting
from tests.stun_server.programs import RunningCaddy, program, running_caddy
from tests.stun_server.redis_server import PROGRAM, WHY_SKIPPED, RedisServer
from tests.stun_server.servers import (
    RunningServer,
    free_port,
    kill_server,
    running_server,
    start_server,
    stop_server,
)

pytestmark = pytest.mark.integration

CLIENTS = 6


@dataclass(frozen=True, slots=True)
class Site:
    proxy: RunningCaddy
    server: RunningServer
    first: requests.Response
    """To a registration that was sent before the server was started."""

    @property
    def url(self) -> str:
        return self.proxy.url


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Caddy, which was there first and logs all that it can, and a server behind it."""
    program("caddy")
    folder, port = tmp_path_factory.mktemp("site"), free_port()
    with pytest.MonkeyPatch.context() as patch, running_caddy(folder, [port], "debug") as proxy:
        patch.setenv("REQUESTS_CA_BUNDLE", str(proxy.root_certificate))
        answers: list[requests.Response] = []
        early = threading.Thread(target=lambda: answers.append(register(proxy.url, "early", "0")))
        early.start()
        with running_server(folder, port=port, STUN_TRUSTED_PROXIES="1") as server:
            early.join(TIMEOUT)
            yield Site(proxy, server, answers[0])


def test_caddy_may_be_started_before_the_server(site: Site) -> None:
    # A slow machine starts the server after Caddy has given up; then it says so, and asks again.
    assert site.first.status_code in (200, 502, 503)
    if site.first.status_code != 200:
        assert site.first.headers["Retry-After"] == "1"
        assert site.first.json()["code"] == "proxy_error"
    assert register(site.url, "early", "0").status_code == 200


def test_source_is_the_one_that_caddy_sees(site: Site) -> None:
    forged = {
        "X-Forwarded-For": "203.0.113.66",
        "X-Real-IP": "203.0.113.66",
        "Forwarded": "for=203.0.113.66",
        "X-Request-ID": "as-the-client-says",
    }
    body = {"boot_id": "run-1", "address": "10.0.0.1", "port": 9998, "role": "LEADER"}
    url = f"{site.url}/v1/clusters/source"
    answer = ask("PUT", f"{url}/instances/0", json=body, headers=forged)
    assert answer.status_code == 200, answer.text
    assert answer.json()["observed_address"] in ("127.0.0.1", "::1")
    assert answer.headers["X-Request-ID"] == "as-the-client-says"
    newest = ask("GET", f"{url}/audit").json()["events"][0]
    assert newest["source"] == answer.json()["observed_address"]
    assert newest["request_id"] == "as-the-client-says"
    assert "203.0.113.66" not in ask("GET", f"{url}/audit").text


@pytest.mark.parametrize(
    "path", ["/metrics", "/METRICS", "/metrics/", "//metrics", "/%6detrics", "/x/../readyz"]
)
def test_operators_routes_are_not_for_the_world(site: Site, path: str) -> None:
    hostname, _, port = site.url.removeprefix("https://").partition(":")
    with contextlib.closing(_connection(site, hostname, int(port))) as connection:
        connection.request("GET", path)  # as it stands: requests would tidy it up
        assert connection.getresponse().status == 404


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "Script_Name", "PATH_INFO"])
def test_no_header_makes_another_path_an_operators_route(site: Site, name: str) -> None:
    for server in (site.url, site.server.url):
        assert ask("GET", f"{server}/x/metrics", headers={name: "/x"}).status_code == 404


def _connection(site: Site, hostname: str, port: int) -> Any:
    import http.client
    import ssl

    trust = ssl.create_default_context(cafile=str(site.proxy.root_certificate))
    return http.client.HTTPSConnection(hostname, port, context=trust, timeout=TIMEOUT)


def test_large_bodies_are_refused(site: Site) -> None:
    large = {**registration("large", "0"), "filling": "x" * 70_000}
    answer = ask("POST", f"{site.url}/register-instance", json=large)
    assert answer.status_code == 413
    assert answer.json()["code"] == "request_entity_too_large"
    pieces = (b"x" * 1000 for _ in range(70))
    assert ask("POST", f"{site.url}/register-instance", data=pieces).status_code == 413


def test_waiting_request_is_answered_through_it_when_something_changes(site: Site) -> None:
    assert register(site.url, "news", "0").status_code == 200
    etag = ask("GET", f"{site.url}/instances/news").headers["ETag"]
    answers: list[requests.Response] = []

    def wait_for_change() -> None:
        headers = {"If-None-Match": etag}
        answers.append(ask("GET", f"{site.url}/instances/news?wait=30", headers=headers))

    thread = threading.Thread(target=wait_for_change)
    thread.start()
    until(lambda: waiting(site.server) == 1, "the request waits")
    assert register(site.url, "news", "1").status_code == 200
    thread.join(TIMEOUT)
    (answer,) = answers
    assert answer.status_code == 200
    assert [each["instance_id"] for each in answer.json()["instances"]] == ["0", "1"]
    assert answer.elapsed.total_seconds() < 30


def test_instances_client_works_through_it(site: Site) -> None:
    leader = Registration("client", 0, "10.0.0.1", 9998, Role.LEADER, "run-1")
    follower = Registration("client", 1, "10.0.0.2", 9998, Role.FOLLOWER, "run-2")
    registry = Registry(site.url, cluster_id="client", key=KEY)
    try:
        registry.register(leader)
        registered = registry.register(follower)
        assert [each.instance_index for each in registered.instances] == [0, 1]
        listing = registry.instances()
        assert listing is not None
        assert registry.instances(listing.revision, wait=0.1) is None
        registry.heartbeat(1)
        registry.leave(1, timeout=10.0)
        changed = registry.instances(listing.revision, wait=10.0)
        assert changed is not None
        assert [each.instance_index for each in changed.instances] == [0]
        with pytest.raises(NotRegistered):
            registry.heartbeat(1)
    finally:
        registry.close()


def test_keys_are_not_in_its_log(site: Site) -> None:
    answer = ask("GET", f"{site.url}/instances/nobodys", headers={"X-Request-ID": "look-for-me"})
    assert answer.status_code == 401
    until(lambda: "look-for-me" in site.proxy.log, "it logs requests with their headers")
    assert KEY not in site.proxy.log
    assert KEY not in site.server.log


class Client(threading.Thread):
    """An instance that lives, asks who is there, and waits for news, until it is told to end."""

    def __init__(self, url: str, index: int, sending: threading.Lock) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.registry = Registry(url, cluster_id="pair", key=KEY)
        self.index = index
        self.sending = sending
        self.turns = 0
        self.failure: BaseException | None = None
        self.ends = threading.Event()

    def run(self) -> None:
        try:
            while not self.ends.is_set():
                self._turn()
                self.turns += 1
        except BaseException as error:
            self.failure = error

    def register(self) -> None:
        address, run = f"10.0.0.{self.index}", f"run-{self.index}"
        self.registry.register(Registration("pair", self.index, address, 9998, Role.FOLLOWER, run))

    def _turn(self) -> None:
        with self.sending:  # with a body, which Caddy cannot send twice
            self.register()
        self.registry.heartbeat(self.index)
        answer = ask("POST", f"{self.url}/heartbeat/pair/{self.index}")
        assert answer.status_code == 200, answer.text
        listing = self.registry.instances()
        assert listing is not None and len(listing.instances) >= CLIENTS
        self.registry.instances(listing.revision, wait=1.0)


def test_clients_notice_nothing_when_one_of_two_servers_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that are on their way are sent to the other one, but for bodies."""
    program("caddy")
    with contextlib.ExitStack() as stack:
        one, two = two_servers(tmp_path, stack)
        proxy = stack.enter_context(running_caddy(tmp_path, [one.port, two.port]))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(proxy.root_certificate))
        sending = threading.Lock()
        clients = [Client(proxy.url, index, sending) for index in range(CLIENTS)]
        for client in clients:
            client.register()
        for client in clients:
            client.start()

        def all_go_on(turns: int) -> bool:
            assert [each.failure for each in clients if each.failure] == []
            return all(each.turns >= turns for each in clients)

        until(lambda: all_go_on(2), "all clients ask")
        with sending:
            kill_server(one)
        turns = max(each.turns for each in clients)
        until(lambda: all_go_on(turns + 2), "all clients go on")
        assert register(proxy.url, "pair", "new").status_code == 200
        until(lambda: all_go_on(turns + 4), "all clients hear of the new one")
        for client in clients:
            client.ends.set()
        for client in clients:
            client.join(TIMEOUT)
            client.registry.close()
            assert client.failure is None


def two_servers(folder: Path, stack: contextlib.ExitStack) -> list[RunningServer]:
    """With one Redis; all end with the stack."""
    if PROGRAM is None:
        pytest.skip(WHY_SKIPPED)
    redis_server = RedisServer.start(folder)
    stack.callback(redis_server.stop)
    servers = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        settings = {"STUN_STORE": redis_server.url, "STUN_TRUSTED_PROXIES": "1"}
        servers.append(start_server(folder / name, port=None, **settings))
        stack.callback(stop_server, servers[-1])
    return servers
