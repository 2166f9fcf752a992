"""Requests that are refused: each in the one form of JSON, with a text that says what was wrong."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from stun_server.app import LARGEST_BODY
from stun_server.keys import hash_of
from stun_server.store import AuditEvent
from tests.stun_server.apps import (
    KEY,
    OTHER_KEY,
    Site,
    lease_path,
    new_body,
    old_body,
    refusal,
    running_site,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running_site(store=f"sqlite:///{tmp_path}/registry.sqlite3") as site:
        yield site


@pytest.fixture
def client(site: Site) -> FlaskClient:
    return site.client()


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"cluster_id": ""}, "cluster_id"),
        ({"cluster_id": "../b"}, "cluster_id"),
        ({"cluster_id": "a" * 129}, "cluster_id"),
        ({"cluster_id": "a\n"}, "cluster_id"),
        ({"cluster_id": "\u0661"}, "cluster_id"),
        ({"cluster_id": 7}, "cluster_id"),
        ({"cluster_id": None}, "cluster_id"),
        ({"instance_id": -1}, "instance_id"),
        ({"instance_id": True}, "instance_id"),
        ({"instance_id": 1.5}, "instance_id"),
        ({"instance_id": ["0"]}, "instance_id"),
        ({"instance_id": 10**200}, "instance_id"),
        ({"address": ""}, "address"),
        ({"address": False}, "address"),
        ({"address": "0.0.0.0"}, "address"),
        ({"address": "::"}, "address"),
        ({"address": "224.0.0.1"}, "address"),
        ({"address": "fe80::1%eth0"}, "address"),
        ({"address": "10.0.0.1:8189"}, "address"),
        ({"address": "10.0.0.256"}, "address"),
        ({"address": "http://x"}, "address"),
        ({"address": "a b"}, "address"),
        ({"address": "-a"}, "address"),
        ({"address": "a" * 254}, "address"),
        ({"address": "\ud800"}, "address"),
        ({"port": 0}, "port"),
        ({"port": 65_536}, "port"),
        ({"port": "8189"}, "port"),
        ({"port": True}, "port"),
        ({"port": 8189.5}, "port"),
        ({"port": 10**300}, "port"),
        ({"port": 1e300}, "port"),
        ({"role": "leaders"}, "role"),
        ({"role": 1}, "role"),
    ],
)
def test_wrong_members_are_named(client: FlaskClient, given: dict[str, Any], where: str) -> None:
    told = refusal(
        client.post("/register-instance", json=old_body(**given)), 400, "invalid_request"
    )
    assert [fault["where"] for fault in told["faults"]] == [where]
    assert f"{where}: " in told["error"]
    assert client.get("/v1/clusters").status_code == 401  # nothing was registered


@pytest.mark.parametrize("member", old_body().keys())
def test_a_missing_member_is_named(client: FlaskClient, member: str) -> None:
    body = old_body()
    del body[member]
    told = refusal(client.post("/register-instance", json=body), 400, "invalid_request")
    assert told["faults"] == [{"where": member, "what": "Field required"}]


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"boot_id": ""}, "boot_id"),
        ({"more": 1}, "more"),
        ({"\ud800": 1}, "body"),
        ({"candidates": {}}, "candidates"),
        ({"candidates": [{}] * 9}, "candidates"),
        ({"candidates": [{"type": "best", "address": "a", "port": 1}]}, "candidates.0.type"),
        (
            {"candidates": [{"type": "host", "address": "a", "port": 1, "priority": -1}]},
            "candidates.0.priority",
        ),
        ({"take_over": 1}, "take_over"),
    ],
)
def test_wrong_members_of_a_lease_are_named(
    client: FlaskClient, given: dict[str, Any], where: str
) -> None:
    answer = client.put(lease_path(), json=new_body(**given))
    told = refusal(answer, 400, "invalid_request")
    assert where in [fault["where"] for fault in told["faults"]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b"{",
        b"{}{}",
        b"\xff\xfe\x00",
        b'{"port":NaN}',
        b'{"port":Infinity}',
        b'{"unknown":-Infinity}',
        b"[" * 20_000,
        b'{"a":' * 10_000,
        b'{"port":' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_no_registration_is_refused(client: FlaskClient, body: bytes) -> None:
    for answer in (
        client.post("/register-instance", data=body),
        client.put(lease_path(), data=body),
    ):
        assert len(refusal(answer, 400, "invalid_request")["error"]) < 1000


def test_values_that_are_no_json_are_refused_where_they_are_ignored(client: FlaskClient) -> None:
    for value in ("NaN", "Infinity", "-Infinity"):
        text = client.application.json.dumps(old_body())[:-1] + f', "load": {value}}}'
        told = refusal(client.post("/register-instance", data=text), 400, "invalid_request")
        assert "not JSON" in told["error"]


def test_bodies_over_the_limit_are_refused(client: FlaskClient) -> None:
    body = client.application.json.dumps(old_body(padding="x" * LARGEST_BODY))
    for answer in (
        client.post("/register-instance", data=body),
        client.put(lease_path(), data=body),
    ):
        refusal(answer, 413, "request_entity_too_large")
    fits = client.application.json.dumps(old_body(padding="x" * (LARGEST_BODY - 200)))
    assert client.post("/register-instance", data=fits).status_code == 200


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("wait=soon", "wait"),
        ("wait=-1", "wait"),
        ("wait=nan", "wait"),
        ("wait=inf", "wait"),
        ("wait=1e999", "wait"),
        ("wait=", "wait"),
        ("wait=1_0", "wait"),
        ("wait=%201", "wait"),
        ("wait=%D9%A1", "wait"),
        ("wait=0&wait=0", "wait"),
        ("since=-1", "since"),
        ("since=x", "since"),
        ("since=1.5", "since"),
        ("since=%C2%B2", "since"),
        ("since=" + "9" * 5000, "since"),
        ("since=1&since=2", "since"),
    ],
)
def test_wrong_queries_are_named(client: FlaskClient, query: str, where: str) -> None:
    client.put(lease_path(), json=new_body())
    told = refusal(client.get(f"/v1/clusters/a?{query}"), 400, "invalid_request")
    assert [fault["where"] for fault in told["faults"]] == [where]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "0.5", "nan", "1.5", "9" * 5000])
def test_a_wrong_limit_is_named(client: FlaskClient, limit: str) -> None:
    client.put(lease_path(), json=new_body())
    told = refusal(client.get(f"/v1/clusters/a/audit?limit={limit}"), 400, "invalid_request")
    assert [fault["where"] for fault in told["faults"]] == ["limit"]


def test_wrong_ids_in_paths_are_refused(client: FlaskClient) -> None:
    for path in (lease_path("b!", "0"), lease_path("b", "-"), lease_path("b", "%00")):
        refusal(client.put(path, json=new_body()), 400, "invalid_request")
    client.put(lease_path(), json=new_body())
    for path in ("/instances/b!", "/v1/clusters/%F0%9F%98%80", "/v1/clusters/.."):
        refusal(client.get(path), 401, "key_refused")
    refusal(client.post("/heartbeat/a/%00"), 404, "not_registered")


def test_routes_that_there_are_not_answer_in_the_same_form(client: FlaskClient) -> None:
    refusal(client.get("/nothing"), 404, "not_found")
    refusal(client.get("/v1/clusters/a/b/c"), 404, "not_found")
    answer = client.patch("/health")
    refusal(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]


def test_a_full_cluster_takes_no_more(tmp_path: Path) -> None:
    with running_site(store=f"sqlite:///{tmp_path}/registry.sqlite3", largest_cluster=1) as site:
        client = site.client()
        client.put(lease_path(), json=new_body())
        told = refusal(client.put(lease_path("a", "1"), json=new_body()), 403, "full")
        assert "STUN_MAX_INSTANCES" in told["error"]
        assert client.put(lease_path(), json=new_body()).status_code == 200


# Keys, and what is told of them.


def test_without_the_key_every_route_answers_the_same(site: Site, client: FlaskClient) -> None:
    client.put(lease_path(), json=new_body())
    texts = set()
    for key, cluster_id in (("", "a"), (OTHER_KEY, "a"), (KEY, "missing"), ("", "missing")):
        other = site.client(key, X_Request_ID="the-same")
        answers = [
            other.get(f"/instances/{cluster_id}"),
            other.post(f"/heartbeat/{cluster_id}/0"),
            other.delete(f"/instance/{cluster_id}/0"),
            other.get(f"/v1/clusters/{cluster_id}?wait=20"),
            other.post(lease_path(cluster_id) + "/heartbeat"),
            other.delete(lease_path(cluster_id)),
            other.get(f"/v1/clusters/{cluster_id}/audit"),
        ]
        for answer in answers:
            if answer.status_code != 429:
                refusal(answer, 401, "key_refused")
                texts.add(answer.text)
    assert len(texts) == 1


def test_a_source_with_too_many_wrong_keys_is_told_when_to_come_back(
    site: Site, client: FlaskClient
) -> None:
    client.put(lease_path(), json=new_body())
    other = site.client(OTHER_KEY)
    answers = [other.get("/instances/a") for _ in range(25)]  # of two windows at most
    answer = answers[-1]
    refusal(answer, 429, "too_many_failures")
    assert 1 <= int(answer.headers["Retry-After"]) <= 10
    assert client.get("/instances/a").status_code == 200


def test_a_neighbours_wrong_keys_hold_up_nobody_in_any_process(
    site: Site, client: FlaskClient, tmp_path: Path
) -> None:
    client.put(lease_path(), json=new_body())
    with running_site(store=f"sqlite:///{tmp_path}/registry.sqlite3") as restarted:
        wrong = restarted.client(OTHER_KEY)
        answers = [wrong.get("/instances/a") for _ in range(25)]  # of two windows at most
        refusal(answers[-1], 429, "too_many_failures")
        again = restarted.client()
        assert again.post("/heartbeat/a/0").status_code == 200
        assert again.put(lease_path(), json=new_body()).status_code == 200
        assert again.get("/v1/clusters").status_code == 200


def test_no_key_is_in_any_log_or_answer(
    site: Site, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong, weak = "wrong-" + KEY, "weak-key"
    told = []
    for key in (KEY, wrong, weak):
        other = site.client(key)
        told += [
            other.put(lease_path(), json=new_body()),
            other.put(lease_path(f"of-{key}"[:9]), json=new_body()),
            other.post("/register-instance", json=old_body(port=0)),
            other.post("/register-instance", data=b"{"),
            *(other.get(path) for path in ("/v1/clusters", "/v1/clusters/a/audit", "/metrics")),
        ]
    texts = [answer.text + str(answer.headers) for answer in told]
    texts += [str(vars(record)) for record in caplog.records]
    assert len(caplog.records) > 10
    for key in (KEY, wrong, weak):
        for secret in (key, hash_of(key)):
            assert not [text for text in texts if secret in text]


# Around each request.


def read_by(site: Site, path: str) -> tuple[object, str]:
    """What reads the store for that route."""
    is_audit = path.endswith("audit")
    return (site.service.store, "audit") if is_audit else (site.service.registry, "listing")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/instances/a", None),
        ("GET", "/v1/clusters/a", None),
        ("GET", "/v1/clusters/a/audit", None),
        ("POST", "/register-instance", old_body()),
        ("PUT", lease_path(), new_body()),
    ],
)
def test_an_id_that_changes_hands_while_the_store_is_read_is_refused(
    site: Site,
    client: FlaskClient,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: dict[str, Any] | None,
) -> None:
    client.put(lease_path(), json=new_body())
    other, (where, name) = site.client(OTHER_KEY), read_by(site, path)
    read = getattr(where, name)

    def read_when_it_is_anothers(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(where, name, read)
        event = AuditEvent(0.0, "key-remove", "a")
        site.service.store.change_keys("a", lambda held: (), event)
        assert other.put(lease_path(), json=new_body(address="10.6.6.6")).status_code == 200
        return read(*arguments, **options)

    monkeypatch.setattr(where, name, read_when_it_is_anothers)
    refusal(client.open(path, method=method, json=body), 401, "key_refused")


def test_a_request_id_is_kept_or_made(client: FlaskClient) -> None:
    assert client.get("/health", headers={"X-Request-ID": "a.B_9-"}).headers["X-Request-ID"] == (
        "a.B_9-"
    )
    for given in ("", "x" * 65, "a b", "\u00e9", "a\tb"):
        answer = client.get("/nothing", headers={"X-Request-ID": given})
        assert re.fullmatch("[0-9a-f]{16}", refusal(answer, 404, "not_found")["request_id"])


def test_a_store_that_is_away_is_503(tmp_path: Path) -> None:
    with running_site(store=f"sqlite:///{tmp_path}/missing/registry.sqlite3") as site:
        client = site.client()
        for answer in (
            client.put(lease_path(), json=new_body()),
            client.get("/v1/clusters/a"),
            client.get("/instances/a"),
            client.post("/heartbeat/a/0"),
        ):
            told = refusal(answer, 503, "store_unavailable")
            assert answer.headers["Retry-After"] == "1"
            assert str(tmp_path) not in answer.text, told
        assert client.get("/health").status_code == client.get("/livez").status_code == 200
        ready = client.get("/readyz")
        assert (ready.status_code, ready.get_json()) == (
            503,
            {"status": "the store cannot be written"},
        )
        assert "stun_store_up 0.0" in client.get("/metrics").text


def test_readiness_ends_with_draining(site: Site, client: FlaskClient) -> None:
    assert client.get("/readyz").get_json() == {"status": "ready"}
    site.service.drain()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.get_json()) == (503, {"status": "stopping"})
    assert client.get("/livez").status_code == 200
