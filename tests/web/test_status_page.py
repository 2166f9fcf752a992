"""The status page in headless Chromium, against gunicorn; the browser reaches no other machine."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import make_server

from stun_server.app import create_app
from stun_server.operations import SERVICE
from stun_server.settings import RegistrySettings
from stun_server.tries import LARGEST_FAILURES
from tests.stun_server.servers import (
    LOOPBACK,
    RunningServer,
    free_port,
    kill_server,
    running_server,
    start_server,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

    from tests.web.status_page import ClusterClient, StatusPage

pytestmark = pytest.mark.integration

KEY = "the-key-of-the-render-farm-0123456789"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
_QUIET_MS = 4000  # longer than the page's own interval


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One for tests that do not disturb it: each has a cluster and a key of its own."""
    with running_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def cluster(server: RunningServer, request: pytest.FixtureRequest) -> ClusterClient:
    return client_of(server.url, request.node.name.replace("_", "-"))


def client_of(url: str, cluster_id: str, key: str = "") -> ClusterClient:
    from tests.web.status_page import ClusterClient

    return ClusterClient(url, cluster_id, key or f"{KEY}-{cluster_id}")


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[StatusPage]:
    from tests.web.status_page import status_page

    with status_page(browser, server.url) as opened:
        yield opened


def test_a_wrong_key_is_refused_in_the_servers_words(
    page: StatusPage, cluster: ClusterClient
) -> None:
    cluster.register("0")
    page.screenshot("entrance")
    page.enter("not-" + cluster.key)
    page.wait_for_trouble("X-Cluster-Key is missing or wrong")
    page.screenshot("wrong-key")
    assert page.stored() == {"session": {}, "local": {}}
    page.enter(f"  {cluster.key}\t")  # as it is pasted
    page.wait_for_headline("1 instance, live")


def test_a_key_that_fits_into_no_header_is_refused_by_the_page(page: StatusPage) -> None:
    page.enter("schlüssel-für-den-cluster-☃")
    page.wait_for_trouble("printable ASCII")
    assert not [url for url in page.urls if "/v1/" in url]


def test_instances_come_and_go_without_a_reload(page: StatusPage, cluster: ClusterClient) -> None:
    cluster.register(
        "0",
        role="LeAdEr",
        boot_id="javascript:alert.1",
        candidates=[{"type": "srflx", "address": "203.0.113.7", "port": 41000, "priority": 7}],
    )
    cluster.register("1", address="2001:db8::1")
    page.enter(cluster.key)
    page.wait_for_headline("2 instances, all live")
    first, second = page.instances()
    assert first["Instance"] == "0 leader"
    assert first["State"] == "live"
    assert first["Address"] == "192.0.2.10:9998 1 candidate"
    assert first["Run"] == "javascript:alert.1"
    assert re.fullmatch(r"just now|\d+ s ago", first["Last seen"])
    assert re.fullmatch(r"in \d+ s", first["Expires"])
    assert second["Address"] == "[2001:db8::1]:9998"
    page.page.get_by_text("1 candidate").click()
    page.page.get_by_text("203.0.113.7:41000 srflx, priority 7").wait_for()

    cluster.register("2")
    page.wait_for_headline("3 instances, all live")
    page.wait_for_events("register", "register", "register", "key-set")
    assert any(re.search(r"\?since=\d+&wait=25$", url) for url in page.urls)
    # What was open stays open: only what changed is drawn.
    assert page.page.get_by_text("203.0.113.7:41000 srflx, priority 7").is_visible()
    page.screenshot("filled")

    cluster.remove("1")
    page.wait_for_headline("2 instances, all live")
    assert [row["Instance"] for row in page.instances()] == ["0 leader", "2 follower"]
    page.wait_for_events("remove", "register", "register", "register", "key-set")

    cluster.remove("0")
    cluster.remove("2")
    page.wait_for_headline("No instances")
    page.page.get_by_text("No instance is registered").wait_for()
    page.screenshot("empty")


def test_last_seen_counts_up_and_a_heartbeat_sets_it_back(
    page: StatusPage, cluster: ClusterClient
) -> None:
    cluster.register("0")
    page.enter(cluster.key)
    page.page.get_by_role("cell", name=re.compile("[5-9] s ago")).wait_for()
    with cluster.heartbeats("0"):
        page.page.get_by_role("cell", name=re.compile("just now|[12] s ago")).wait_for()


def test_the_key_is_in_no_address_and_in_no_log(
    page: StatusPage, server: RunningServer, cluster: ClusterClient
) -> None:
    cluster.register("0")
    page.enter(cluster.key)
    page.wait_for_headline("1 instance, live")
    page.page.reload()
    page.wait_for_headline("1 instance, live")  # this tab still knows it
    assert list(page.stored()["session"].values()) == [cluster.key]
    assert page.stored()["local"] == {}
    assert cluster.key not in page.page.content()

    page.page.get_by_role("button", name="Forget key").click()
    page.wait_for_entrance()
    assert page.stored() == {"session": {}, "local": {}}
    page.page.reload()
    page.wait_for_entrance()
    assert any("/v1/clusters" in url for url in page.urls)
    assert not [url for url in page.urls if cluster.key in url]
    assert {url.split("/")[2] for url in page.urls} == {f"{LOOPBACK}:{server.port}"}
    assert cluster.key not in server.log


def test_a_hidden_page_asks_for_nothing(page: StatusPage, cluster: ClusterClient) -> None:
    cluster.register("0")
    page.enter(cluster.key)
    page.wait_for_headline("1 instance, live")
    page.set_hidden(True)
    page.page.wait_for_timeout(200)  # what was asked just before
    page.urls.clear()
    cluster.register("1")
    page.page.wait_for_timeout(_QUIET_MS)
    assert page.urls == []
    page.set_hidden(False)
    page.wait_for_headline("2 instances, all live")


def test_a_key_of_many_clusters_shows_the_first_and_counts_the_others(
    page: StatusPage, server: RunningServer
) -> None:
    key = KEY + "-of-many"
    clusters = [client_of(server.url, f"many-{number}", key) for number in range(5)]
    for each in clusters:
        each.register("0")
    from playwright.sync_api import expect

    page.enter(key)
    page.wait_for_headline("5 clusters, 5 instances")
    rows = page.page.locator(".instances tbody tr")
    expect(rows).to_have_count(3)
    clusters[4].register("1")
    page.page.locator(".cluster", has_text="many-4").locator("> summary").click()
    page.wait_for_headline("5 clusters, 6 instances")
    assert rows.count() == 5
    page.screenshot("many")


def test_what_a_server_tells_never_becomes_markup(browser: Browser, server: RunningServer) -> None:
    from tests.web.status_page import status_page

    instance: dict[str, Any] = dict.fromkeys(
        ("instance_id", "boot_id", "address", "port", "role", "generation", "state"), HOSTILE
    )
    instance |= {"registered_at": HOSTILE, "last_ping": HOSTILE, "expires_in_s": HOSTILE}
    instance["candidates"] = [dict.fromkeys(("type", "address", "port", "priority"), HOSTILE)]
    names = ("event", "instance_id", "source", "key_fingerprint", "request_id", "detail")
    event = {"at": "2026-01-01T00:00:00Z", **dict.fromkeys(names, HOSTILE)}

    def answer(route: Route) -> None:
        path = route.request.url.split("?")[0]
        if "since=" in route.request.url:
            route.fulfill(status=304)
        elif path.endswith("/v1/clusters"):
            summary = {"cluster_id": HOSTILE, "revision": HOSTILE, "instances": 1}
            route.fulfill(json={"clusters": [summary]})
        elif path.endswith("/audit"):
            route.fulfill(json={"events": [event]})
        else:
            body = {"cluster_id": HOSTILE, "epoch": "1", "revision": 1, "instances": [instance]}
            route.fulfill(json=body)

    with status_page(browser, server.url) as page:
        page.page.route("**/v1/**", answer)
        page.enter(KEY)
        page.wait_for_events(HOSTILE)
        assert page.instances()[0]["Run"] == HOSTILE
        assert page.page.locator("main img, main script").count() == 0
        page.page.unroute("**/v1/**")
        page.page.route(
            "**/v1/**", lambda route: route.fulfill(status=503, json={"error": HOSTILE})
        )
        page.wait_for_notice(HOSTILE)
        assert page.page.locator("main img, main script").count() == 0


def test_a_silent_instance_is_late_and_then_gone(browser: Browser, tmp_path: Path) -> None:
    from tests.web.status_page import status_page

    with running_server(tmp_path, STUN_INSTANCE_TIMEOUT="10") as server:
        cluster = client_of(server.url, "farm")
        cluster.register("0", role="LEADER")
        cluster.register("1")
        with status_page(browser, server.url) as page:
            page.enter(cluster.key)
            page.wait_for_headline("2 instances, all live")
            with cluster.heartbeats("0"):
                page.wait_for_headline("2 instances, 1 late")
                assert [row["State"] for row in page.instances()] == ["live", "late"]
                page.screenshot("late")
                page.wait_for_headline("1 instance, live")
                assert [row["Instance"] for row in page.instances()] == ["0 leader"]
            page.wait_for_events("expire", "register", "register", "key-set")


def test_a_server_that_went_away_is_told_and_found_again(browser: Browser, tmp_path: Path) -> None:
    from tests.web.status_page import status_page

    server = start_server(tmp_path)
    try:
        cluster = client_of(server.url, "farm")
        cluster.register("0")
        with status_page(browser, server.url) as page:
            page.enter(cluster.key)
            page.wait_for_headline("1 instance, live")
            kill_server(server)
            page.wait_for_notice("The server does not answer")
            page.page.get_by_text("As of").wait_for()
            page.screenshot("away")
            server = start_server(tmp_path, port=server.port)
            page.wait_for_no_notice()
            cluster.register("1")
            page.wait_for_headline("2 instances, all live")
    finally:
        kill_server(server)


def test_a_key_that_is_taken_away_ends_what_is_shown(browser: Browser, tmp_path: Path) -> None:
    from tests.web.status_page import status_page

    cluster_id = "farm"
    with running_server(tmp_path, STUN_CLUSTER_KEYS=f"{cluster_id}={KEY}") as server:
        port = server.port
        with status_page(browser, server.url) as page:
            page.enter(KEY)
            page.wait_for_headline("No instances")
            kill_server(server)
            page.wait_for_notice("The server does not answer")
            with running_server(tmp_path, port=port, STUN_CLUSTER_KEYS=f"{cluster_id}=other-{KEY}"):
                page.wait_for_trouble("X-Cluster-Key is missing or wrong")
                page.wait_for_entrance()
                assert page.stored() == {"session": {}, "local": {}}


def test_too_many_wrong_keys_are_waited_out(browser: Browser, tmp_path: Path) -> None:
    from tests.web.status_page import status_page

    with (
        running_server(tmp_path, STUN_CLUSTER_KEYS=f"farm={KEY}") as server,
        status_page(browser, server.url) as page,
    ):
        exhaust_wrong_keys(server)
        page.enter(KEY)
        page.wait_for_trouble("too many wrong keys")
        page.page.get_by_text("Trying again").wait_for()
        page.screenshot("too-many")
        assert page.page.get_by_role("button", name="Open").is_disabled()
        page.page.wait_for_timeout(1000)
        assert len([url for url in page.urls if "/v1/" in url]) == 1
        page.wait_for_headline("No instances")


def exhaust_wrong_keys(server: RunningServer) -> None:
    """Until this machine is refused, for some seconds more."""
    for number in range(10 * LARGEST_FAILURES):
        answer = requests.get(
            f"{server.url}/v1/clusters", headers={"X-Cluster-Key": f"wrong-{number}"}, timeout=10.0
        )
        if answer.status_code == 429:
            seconds = int(answer.headers["Retry-After"])
            if seconds >= 4:
                return
            time.sleep(seconds)  # the next window begins, and it is a whole one
    raise AssertionError("never refused")


def test_behind_a_proxy_it_works_under_a_path(browser: Browser, tmp_path: Path) -> None:
    from tests.web.status_page import status_page

    app = create_app(RegistrySettings(store=f"sqlite:///{tmp_path}/registry.db", udp_port=None))
    served = DispatcherMiddleware(NotFound(), {"/some/path": app})
    server = make_server(LOOPBACK, free_port(), served, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://{LOOPBACK}:{server.server_port}/some/path"
    try:
        cluster = client_of(url, "farm")
        cluster.register("0")
        with status_page(browser, f"{url}/") as page:
            page.enter(cluster.key)
            page.wait_for_headline("1 instance, live")
            page.page.get_by_role("link", name="API").click()
            page.page.get_by_role("heading", name="API", exact=True).wait_for()
            page.screenshot("docs")
            page.page.get_by_role("link", name="Rendezvous server").click()
            page.wait_for_headline("1 instance, live")
    finally:
        app.extensions[SERVICE].drain()
        server.shutdown()
        thread.join()
        server.server_close()
        app.extensions[SERVICE].close()
