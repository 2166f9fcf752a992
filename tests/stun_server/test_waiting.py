"""Requests that wait for a change: woken by it wherever it was made, and never held for nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from stun_server.schemas import LARGEST_INDEX
from stun_server.store import AuditEvent, Listing, StoreUnavailable, open_store
from stun_server.waiting import ChangeWatch
from tests.stun_server.apps import Site, lease_path, new_body, old_body, refusal, running_site
from tests.stun_server.asking import TIMEOUT, until

ANSWERED = 15.0  # seconds; much less than they would wait
WAIT = 30


@pytest.fixture
def site(store_url: str) -> Iterator[Site]:
    with running_site(store=store_url) as site:
        yield site


@pytest.fixture
def client(site: Site) -> FlaskClient:
    client = site.client()
    client.put(lease_path(), json=new_body())
    return client


@pytest.fixture
def park() -> Iterator[Callable[..., Future[TestResponse]]]:
    """`park(site, path)`: the answer to come of a request that waits by now."""
    with ThreadPoolExecutor(8) as pool:

        def park(site: Site, path: str, **headers: str) -> Future[TestResponse]:
            waiting = site.service.watch.waiting
            client = site.client()
            answer = pool.submit(lambda: client.get(path, headers=headers))
            until(lambda: site.service.watch.waiting > waiting or answer.done(), f"{path} waits")
            return answer

        yield park


def since(client: FlaskClient, wait: float = WAIT) -> str:
    """The path that waits for what comes after this moment."""
    revision = client.get("/v1/clusters/a").get_json()["revision"]
    return f"/v1/clusters/a?since={revision}&wait={wait}"


def ids(answer: TestResponse) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [each["instance_id"] for each in answer.get_json()["instances"]]


# Without waiting.


def test_304_tells_of_the_list_that_was_compared(
    site: Site, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    etag = client.get("/v1/clusters/a").headers["ETag"]
    listing, other = site.service.registry.listing, site.client()

    def listing_before_a_change(cluster_id: str) -> Listing:
        found = listing(cluster_id)
        monkeypatch.setattr(site.service.registry, "listing", listing)
        other.put(lease_path("a", "1"), json=new_body())
        return found

    monkeypatch.setattr(site.service.registry, "listing", listing_before_a_change)
    answer = client.get("/v1/clusters/a", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.headers["ETag"]) == (304, etag)
    assert ids(client.get("/v1/clusters/a", headers={"If-None-Match": etag})) == ["0", "1"]


@pytest.mark.parametrize("path", ["/instances/a", "/v1/clusters/a"])
def test_what_is_known_is_304(client: FlaskClient, path: str) -> None:
    etag = client.get(path).headers["ETag"]
    for given in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
        answer = client.get(path, headers={"If-None-Match": given})
        assert (answer.status_code, answer.text, answer.headers["ETag"]) == (304, "", etag)
    for given in ("", '"x"', etag[:-2] + '"', "W/", '"', etag.upper()[2:-3], "\u00e9"):
        assert client.get(path, headers={"If-None-Match": given}).status_code == 200
    client.post(lease_path() + "/heartbeat")
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
    client.put(lease_path("a", "1"), json=new_body())
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 200


def test_a_revision_that_is_not_the_present_one_is_answered_at_once(client: FlaskClient) -> None:
    revision = client.get("/v1/clusters/a").get_json()["revision"]
    for other in (0, revision - 1, revision + 1, LARGEST_INDEX):
        assert ids(client.get(f"/v1/clusters/a?since={other}&wait={WAIT}")) == ["0"]
    assert client.get(f"/v1/clusters/a?since={revision}").status_code == 304
    assert client.get(f"/v1/clusters/a?since={revision}&wait=0.05").status_code == 304


# Waiting.


def test_a_change_of_another_process_wakes_both_apis(
    site: Site, client: FlaskClient, store_url: str, park: Callable[..., Future[TestResponse]]
) -> None:
    etag = client.get("/instances/a").headers["ETag"]
    new = park(site, since(client))
    old = park(site, f"/instances/a?wait={WAIT}", If_None_Match=etag)
    with running_site(store=store_url) as other:
        other.client().post("/register-instance", json=old_body(instance_id="1"))
    for answer in (new, old):
        assert ids(answer.result(ANSWERED)) == ["0", "1"]


@pytest.mark.parametrize("change", ["remove", "replace", "update"])
def test_each_change_wakes(
    site: Site, client: FlaskClient, park: Callable[..., Future[TestResponse]], change: str
) -> None:
    answer = park(site, since(client))
    if change == "remove":
        client.delete(lease_path())
    else:
        body = new_body(port=7, boot_id="run-2" if change == "replace" else "run-1")
        client.put(lease_path(), json=body)
    told = answer.result(ANSWERED)
    assert [each["port"] for each in told.get_json()["instances"]] == [7] * (change != "remove")


def test_the_end_of_a_lease_wakes(
    store_url: str, park: Callable[..., Future[TestResponse]]
) -> None:
    with running_site(store=store_url, instance_timeout=1.0) as site:
        client = site.client()
        granted = client.put(lease_path(), json=new_body()).get_json()["cluster"]
        path = f"/v1/clusters/a?since={granted['revision']}&wait={WAIT}"
        assert ids(park(site, path).result(ANSWERED)) == []
        events = client.get("/v1/clusters/a/audit").get_json()["events"]
        assert events[0]["event"] == "expire"


def test_a_change_of_another_cluster_and_heartbeats_wake_nobody(
    site: Site, client: FlaskClient, park: Callable[..., Future[TestResponse]]
) -> None:
    answer = park(site, since(client, wait=0.6))
    client.put(lease_path("b"), json=new_body())
    client.post("/heartbeat/a/0")
    assert answer.result(ANSWERED).status_code == 304


def test_no_more_wait_than_there_are_threads_for(
    store_url: str, park: Callable[..., Future[TestResponse]]
) -> None:
    with running_site(store=store_url, threads=2) as site:  # of which one may wait
        client = site.client()
        client.put(lease_path(), json=new_body())
        first = park(site, since(client))
        assert park(site, since(client)).result(ANSWERED).status_code == 304
        assert not first.done()
        client.delete(lease_path())
        assert ids(first.result(ANSWERED)) == []


def test_a_process_that_ends_sends_all_away(
    site: Site, client: FlaskClient, park: Callable[..., Future[TestResponse]]
) -> None:
    answers = [park(site, since(client)) for _ in range(3)]
    site.service.drain()
    assert {answer.result(ANSWERED).status_code for answer in answers} == {304}
    assert park(site, since(client)).result(ANSWERED).status_code == 304


def test_a_key_that_is_taken_away_ends_the_waiting(
    site: Site, client: FlaskClient, park: Callable[..., Future[TestResponse]]
) -> None:
    answer = park(site, since(client))
    event = AuditEvent(0.0, "key-remove", "a")
    site.service.store.change_keys("a", lambda held: (), event)
    refusal(answer.result(ANSWERED), 401, "key_refused")


# The watch itself.


class Wavering:
    """A store of one cluster that can be away; nothing but its revisions is asked for."""

    def __init__(self) -> None:
        self.revision = 5
        self.is_away = False
        self.hangs_until = threading.Event()
        self.hangs_until.set()
        self.asked = threading.Semaphore(0)

    def revisions(self, cluster_ids: Collection[str]) -> dict[str, int]:
        self.asked.release()
        self.hangs_until.wait(2 * ANSWERED)
        if self.is_away:
            raise StoreUnavailable("STUN_STORE, away")
        return dict.fromkeys(cluster_ids, self.revision)


@pytest.fixture
def wavering() -> Wavering:
    return Wavering()


@pytest.fixture
def watch(wavering: Any) -> Iterator[ChangeWatch]:
    watch = ChangeWatch(wavering, capacity=2)
    yield watch
    watch.close()
    watch.join()


def test_waiting_outlasts_a_store_that_is_away(watch: ChangeWatch, wavering: Wavering) -> None:
    wavering.is_away = True
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(watch.wait, "a", 5, WAIT)
        for _ in range(3):
            assert wavering.asked.acquire(timeout=ANSWERED)
        wavering.revision, wavering.is_away = 6, False
        assert answer.result(ANSWERED) is True


def test_nobody_waits_for_what_has_come(watch: ChangeWatch, wavering: Wavering) -> None:
    with ThreadPoolExecutor(2) as pool:
        wavering.revision = 7
        pool.submit(watch.wait, "a", 7, WAIT)
        until(lambda: watch.waiting == 1, "it waits")
        assert pool.submit(watch.wait, "a", 5, WAIT).result(ANSWERED) is True
        wavering.revision = 8


def test_a_revision_that_begins_anew_wakes(watch: ChangeWatch, wavering: Wavering) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(watch.wait, "a", 5, WAIT)
        until(lambda: watch.waiting == 1, "it waits")
        wavering.revision = 0
        assert answer.result(ANSWERED) is True


def test_a_store_that_hangs_keeps_nobody_from_being_sent_away(
    watch: ChangeWatch, wavering: Wavering
) -> None:
    wavering.hangs_until.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(watch.wait, "a", 5, WAIT)
        assert wavering.asked.acquire(timeout=ANSWERED)
        watch.close()
        assert answer.result(ANSWERED) is False
        assert not wavering.hangs_until.is_set()
        wavering.hangs_until.set()


def test_a_watch_that_is_closed_lets_nobody_wait(watch: ChangeWatch) -> None:
    watch.close()
    assert watch.is_closing
    assert watch.wait("a", 5, WAIT) is False
    assert watch.waiting == 0


def test_a_watch_lets_so_many_wait_and_no_more(watch: ChangeWatch, wavering: Wavering) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(watch.wait, name, 5, WAIT) for name in ("a", "b")]
        until(lambda: watch.waiting == 2, "both wait")
        assert watch.wait("c", 5, WAIT) is False
        wavering.revision = 6
        assert [answer.result(ANSWERED) for answer in answers] == [True, True]
    assert watch.waiting == 0


def test_a_store_is_made_before_the_fork_and_used_after_it(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/registry.sqlite3")
    assert not list(tmp_path.iterdir())
    store.close()


def test_one_cluster_does_not_take_all_places(store_url: str) -> None:
    store = open_store(store_url)
    watch = ChangeWatch(store, capacity=4)
    with ThreadPoolExecutor(4) as pool:
        parked = [pool.submit(watch.wait, "a", 0, WAIT) for _ in range(3)]
        until(lambda: watch.waiting == 3, "three wait")
        assert not watch.wait("a", 0, WAIT)
        other = pool.submit(watch.wait, "b", 0, WAIT)
        until(lambda: watch.waiting == 4, "another cluster's waits too")
        assert not watch.wait("c", 0, WAIT)
        watch.close()
        assert not any(each.result(TIMEOUT) for each in [*parked, other])
    watch.join()
    store.close()
