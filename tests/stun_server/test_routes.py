"""The routes of both APIs: what they answer, byte for byte where that is a contract."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from stun_server.schemas import LARGEST_AUDIT
from tests.stun_server.apps import (
    OTHER_KEY,
    Site,
    lease_path,
    new_body,
    old_body,
    refusal,
    running_site,
)

MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00"
OLD_INSTANCE = (
    r'\{"instance_id":"0","address":"10\.0\.0\.1","port":8189,"role":"LEADER",'
    rf'"last_ping":"{MOMENT}"\}}'
)


@pytest.fixture
def site(store_url: str) -> Iterator[Site]:
    with running_site(store=store_url) as site:
        yield site


@pytest.fixture
def client(site: Site) -> FlaskClient:
    return site.client()


# The five routes of the specification.


def test_registration_answers_the_contracts_bytes(client: FlaskClient) -> None:
    answer = client.post("/register-instance", json=old_body())
    assert answer.status_code == 200
    assert answer.mimetype == "application/json"
    assert re.fullmatch(
        rf'\{{"status":"registered","instance_id":"0","instances":\[{OLD_INSTANCE}\]\}}\n',
        answer.text,
    )


def test_list_answers_the_contracts_bytes(client: FlaskClient) -> None:
    client.post("/register-instance", json=old_body())
    answer = client.get("/instances/a")
    assert answer.status_code == 200
    assert re.fullmatch(rf'\{{"cluster_id":"a","instances":\[{OLD_INSTANCE}\]\}}\n', answer.text)
    assert re.fullmatch(r'W/"[0-9a-f]{8}-\d+"', answer.headers["ETag"])


def test_heartbeat_removal_and_health_answer_the_contracts_bytes(
    site: Site, client: FlaskClient
) -> None:
    client.post("/register-instance", json=old_body())
    beat = client.post("/heartbeat/a/0")
    assert (beat.status_code, beat.text) == (200, '{"status":"updated","instance_id":"0"}\n')
    gone = client.delete("/instance/a/0")
    assert (gone.status_code, gone.text) == (200, '{"status":"removed","instance_id":"0"}\n')
    assert client.get("/instances/a").text == '{"cluster_id":"a","instances":[]}\n'
    health = site.client(key="").get("/health")
    assert (health.status_code, health.text) == (200, '{"status":"healthy"}\n')


def test_what_is_not_registered_is_404(client: FlaskClient) -> None:
    client.post("/register-instance", json=old_body())
    for answer in (client.post("/heartbeat/a/1"), client.delete("/instance/a/1")):
        assert "'1' is not registered" in refusal(answer, 404, "not_registered")["error"]


def test_old_bodies_may_say_more_and_have_a_numeric_id(client: FlaskClient) -> None:
    body = old_body(instance_id=3, port=5901.0, hostname="ignored", gpu={"name": "any"})
    told = client.post("/register-instance", json=body, content_type="text/plain").get_json()
    assert [(each["instance_id"], each["port"]) for each in told["instances"]] == [("3", 5901)]


def test_instances_are_listed_in_the_order_of_their_numbers(client: FlaskClient) -> None:
    for instance_id in ("10", "worker", "9", "a"):
        client.post("/register-instance", json=old_body(instance_id=instance_id))
    listed = client.get("/instances/a").get_json()["instances"]
    assert [each["instance_id"] for each in listed] == ["9", "10", "a", "worker"]


# The richer API.


def test_a_lease_tells_what_it_is(client: FlaskClient) -> None:
    candidates = [{"type": "srflx", "address": "203.0.113.7", "port": 40_000, "priority": 5}]
    answer = client.put(lease_path(), json=new_body(candidates=candidates))
    told = answer.get_json()
    assert (told["status"], told["instance_id"], told["boot_id"]) == ("registered", "0", "run-1")
    assert (told["lease_ttl_s"], told["heartbeat_interval_s"]) == (60.0, 20.0)
    assert (told["observed_address"], told["stun"]) == ("127.0.0.1", None)
    cluster = told["cluster"]
    assert cluster == client.get("/v1/clusters/a").get_json() | {
        "instances": cluster["instances"]  # in which the seconds left go on
    }
    (instance,) = cluster["instances"]
    assert instance["candidates"] == candidates
    assert (instance["generation"], instance["state"]) == (told["generation"], "live")
    assert 0 < instance["expires_in_s"] <= 60
    assert answer.headers["ETag"] == f'W/"{cluster["epoch"]}-{cluster["revision"]}"'


def test_the_same_registration_again_changes_nothing(client: FlaskClient) -> None:
    first = client.put(lease_path(), json=new_body()).get_json()
    again = client.put(lease_path(), json=new_body()).get_json()
    assert again["generation"] == first["generation"]
    assert again["cluster"]["revision"] == first["cluster"]["revision"]


def test_a_run_that_was_replaced_is_told_so(client: FlaskClient) -> None:
    first = client.put(lease_path(), json=new_body()).get_json()
    second = client.put(lease_path(), json=new_body(boot_id="run-2", port=2)).get_json()
    assert second["generation"] > first["generation"]
    for answer in (
        client.put(lease_path(), json=new_body()),
        client.post(lease_path() + "/heartbeat?boot_id=run-1"),
        client.delete(lease_path() + "?boot_id=run-1"),
    ):
        assert "10.0.0.1 port 2" in refusal(answer, 409, "instance_conflict")["error"]
    assert client.delete(lease_path() + "?boot_id=run-2").status_code == 200
    assert client.put(lease_path(), json=new_body()).status_code == 200


def test_who_takes_nothing_over_is_told_who_holds_it(client: FlaskClient) -> None:
    client.put(lease_path(), json=new_body())
    elsewhere = new_body(boot_id="run-2", address="10.0.0.2", take_over=False)
    told = refusal(client.put(lease_path(), json=elsewhere), 409, "instance_held")
    assert told["holder"].keys() == {"address", "port", "last_ping"}
    assert told["holder"]["address"] == "10.0.0.1"


def test_a_heartbeat_has_no_body_and_tells_the_revision(client: FlaskClient) -> None:
    granted = client.put(lease_path(), json=new_body()).get_json()
    for run in ("", "?boot_id=run-1"):
        told = client.post(lease_path() + "/heartbeat" + run).get_json()
        assert told == {
            "status": "updated",
            "instance_id": "0",
            "lease_ttl_s": 60.0,
            "heartbeat_interval_s": 20.0,
            "revision": granted["cluster"]["revision"],
        }


@pytest.mark.parametrize("run", ["", "%20", "-x", "x" * 129])
def test_a_run_that_cannot_be_one_is_refused(client: FlaskClient, run: str) -> None:
    client.put(lease_path(), json=new_body())
    for answer in (
        client.post(f"{lease_path()}/heartbeat?boot_id={run}"),
        client.delete(f"{lease_path()}?boot_id={run}"),
    ):
        assert refusal(answer, 400, "invalid_request")["faults"][0]["where"] == "boot_id"
    assert client.post(lease_path() + "/heartbeat").status_code == 200


def test_the_clusters_of_a_key_are_listed(site: Site, client: FlaskClient) -> None:
    for cluster_id in ("b", "a"):
        client.put(lease_path(cluster_id), json=new_body())
    site.client(OTHER_KEY).put(lease_path("c"), json=new_body())
    told = client.get("/v1/clusters").get_json()["clusters"]
    assert [(each["cluster_id"], each["instances"]) for each in told] == [("a", 1), ("b", 1)]


def test_the_audit_log_tells_what_happened(client: FlaskClient) -> None:
    client.put(lease_path(), json=new_body(), headers={"X-Request-ID": "first"})
    client.put(lease_path(), json=new_body(boot_id="run-2"))
    client.delete(lease_path())
    events = client.get("/v1/clusters/a/audit").get_json()["events"]
    assert [each["event"] for each in events] == ["remove", "replace", "register", "key-set"]
    assert events[2]["source"] == "127.0.0.1"
    assert events[2]["request_id"] == "first"
    assert "run run-1" in events[1]["detail"]
    assert len(client.get("/v1/clusters/a/audit?limit=2").get_json()["events"]) == 2
    assert client.get(f"/v1/clusters/a/audit?limit={10 * LARGEST_AUDIT}").status_code == 200


@pytest.mark.parametrize(("proxies", "source"), [(0, "127.0.0.1"), (1, "9.9.9.9"), (2, "8.8.8.8")])
def test_forwarded_for_is_believed_of_trusted_proxies_only(
    store_url: str, proxies: int, source: str
) -> None:
    with running_site(store=store_url, trusted_proxies=proxies) as site:
        client = site.client(X_Forwarded_For="7.7.7.7, 8.8.8.8, 9.9.9.9")
        told = client.put(lease_path(), json=new_body()).get_json()
        assert told["observed_address"] == source
        events = client.get("/v1/clusters/a/audit").get_json()["events"]
        assert {each["source"] for each in events} == {source}
