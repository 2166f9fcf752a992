"""The client's side of one rendezvous server: routes, and a message of its own for each failure."""

from __future__ import annotations

import datetime
import gzip
import socket
import threading
from collections.abc import Iterator
from email.utils import format_datetime

import pytest

from comfy_cluster.config import Role
from comfy_cluster.discovery import registry
from comfy_cluster.discovery.exchanges import LARGEST_ANSWER
from comfy_cluster.discovery.registry import (
    IndexTaken,
    Listed,
    NotRegistered,
    Registration,
    Registry,
)
from comfy_cluster.errors import RegistrationRefused, RegistryUnavailable
from tests.unit.discovery.rendezvous import Rendezvous, dripping_tls_server, silent_server

KEY = "k" * 32
OWN = Registration("c", 2, "10.0.0.3", 9998, Role.FOLLOWER, boot_id="b1")
PREFIX = "Failed to register with STUN server: "


@pytest.fixture
def server() -> Iterator[Rendezvous]:
    with Rendezvous() as made:
        yield made


def client(url: str, *, key: str = KEY) -> Registry:
    return Registry(url, cluster_id="c", key=key)


def test_the_routes_of_the_contract(server: Rendezvous) -> None:
    asking = client(server.url)
    server.put(0)
    assert asking.register(OWN).instances == (
        Listed(0, "10.0.0.9", 9998),
        Listed(2, "10.0.0.3", 9998),
    )
    listing = asking.instances()
    assert listing is not None and len(listing.instances) == 2
    asking.heartbeat(2)
    asking.leave(2, timeout=5.0)
    with pytest.raises(NotRegistered):
        asking.heartbeat(2)
    assert server.asked == [
        "POST /register-instance",
        "GET /instances/c",
        "POST /heartbeat/c/2",
        "DELETE /instance/c/2",
        "POST /heartbeat/c/2",
    ]


def test_a_list_is_waited_for_where_the_server_tells_revisions() -> None:
    with Rendezvous(tells_revisions=True) as server:
        asking = client(server.url)
        listing = asking.instances()
        assert listing is not None and listing.revision
        assert asking.instances(listing.revision, wait=0.01) is None
        server.put(1)
        changed = asking.instances(listing.revision, wait=20.0)
        assert changed is not None and changed.instances == (Listed(1, "10.0.0.9", 9998),)


def test_entries_that_make_no_sense_are_left_out(server: Rendezvous) -> None:
    body = {
        "instances": [
            {"instance_id": 1, "address": "a", "port": 5},
            {"instance_id": "x", "address": "a", "port": 5},
            {"instance_id": "2", "address": "", "port": 5},
            {"instance_id": "3", "address": "a", "port": 70_000},
            {"instance_id": "3", "address": "a", "port": float("inf")},
            None,
        ]
    }
    server.failing = (200, body)
    listing = client(server.url).instances()
    assert listing is not None and listing.instances == (Listed(1, "a", 5),)


def test_a_wrong_key(server: Rendezvous) -> None:
    client(server.url).register(OWN)
    with pytest.raises(RegistrationRefused) as info:
        client(server.url, key="x" * 32).register(OWN)
    assert str(info.value).startswith(PREFIX + server.url)
    assert "refuses the key of cluster 'c'" in str(info.value)
    assert "COMFY_CLUSTER_KEY" in str(info.value) and "x" * 32 not in str(info.value)


def test_a_taken_index(server: Rendezvous) -> None:
    server.failing = (409, {"error": "instance 2 is registered from 10.0.0.8 and alive"})
    with pytest.raises(IndexTaken, match=r"alive"):
        client(server.url).register(OWN)


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RegistryUnavailable) as info:
            client(url).register(OWN)
    assert str(info.value).startswith(f"{PREFIX}{url} cannot be reached (Connection refused)")


def test_an_unknown_name() -> None:
    with pytest.raises(RegistryUnavailable, match=r"nowhere\.invalid:8089 cannot be reached"):
        client("http://nowhere.invalid:8089").register(OWN)


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ANSWER_TIMEOUT", 0.05)
    with silent_server() as url, pytest.raises(RegistryUnavailable, match="does not answer in"):
        client(url).register(OWN)


@pytest.mark.parametrize("how", ["silence", "headers", "body"])
def test_an_answer_that_never_ends_has_its_time(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Each byte comes in time; all of them never."""
    monkeypatch.setattr(registry, "ANSWER_TIMEOUT", 0.2)
    asking = client(server.url)
    server.stalling = how
    with pytest.raises(RegistryUnavailable, match="does not answer in time"):
        asking.instances()
    asking.leave(2, timeout=0.2)
    server.stalling = None
    server.put(0)
    listing = asking.instances()
    assert listing is not None and len(listing.instances) == 1


def test_a_tls_handshake_that_never_ends_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ANSWER_TIMEOUT", 0.2)
    with (
        dripping_tls_server() as url,
        pytest.raises(RegistryUnavailable, match="does not answer in time"),
    ):
        client(url).instances()


def test_an_answer_that_is_too_large_is_not_read_to_its_end(server: Rendezvous) -> None:
    server.stalling = "endless"
    with pytest.raises(RegistryUnavailable) as info:
        client(server.url).instances()
    text = str(info.value)
    assert text.startswith(f"{server.url} answers GET /v1/clusters/c with more than 4 MiB")
    assert "COMFY_CLUSTER_STUN_SERVER" in text


def test_a_large_answer_that_tells_its_size_is_not_read_either(server: Rendezvous) -> None:
    server.raw_answer = b" " * (LARGEST_ANSWER + 1)
    with pytest.raises(RegistryUnavailable, match="more than 4 MiB"):
        client(server.url).register(OWN)
    server.raw_answer = b" " * (LARGEST_ANSWER - 2) + b"{}"
    assert client(server.url).register(OWN).instances == ()


def test_what_is_packed_stays_packed(server: Rendezvous) -> None:
    server.raw_answer = gzip.compress(bytes(1 << 20))
    server.headers["Content-Encoding"] = "gzip"
    with pytest.raises(RegistrationRefused, match="does not answer with JSON"):
        client(server.url).instances()


def test_json_without_a_bottom_is_no_json(server: Rendezvous) -> None:
    server.raw_answer = b"[" * 100_000
    with pytest.raises(RegistrationRefused, match="does not answer with JSON"):
        client(server.url).instances()


def test_whoever_is_interrupted_asks_no_more(server: Rendezvous) -> None:
    asking = client(server.url)
    server.stalling = "silence"

    def interrupt() -> None:
        server.wait_for("GET /v1/clusters/c")
        asking.interrupt()

    asked = threading.Thread(target=interrupt)
    asked.start()
    for _ in range(2):
        with pytest.raises(RegistryUnavailable, match="does not answer in time"):
            asking.instances()
    asked.join()
    assert len(server.asked) == 1


def test_one_connection_serves_all_questions(server: Rendezvous) -> None:
    asking = client(server.url)
    for _ in range(5):
        asking.register(OWN)
        asking.instances()
    asking.close()
    assert server.connection_count == 1


def test_no_tls(server: Rendezvous) -> None:
    url = server.url.replace("http:", "https:")
    with pytest.raises(RegistryUnavailable, match=r"TLS fails .* is it an https:// server"):
        client(url).register(OWN)


def test_another_program_answers(server: Rendezvous) -> None:
    server.raw_answer = b"<html>"
    with pytest.raises(RegistrationRefused, match="does not answer with JSON"):
        client(server.url).register(OWN)
    server.failing = (405, {})
    with pytest.raises(RegistrationRefused, match="answers 405"):
        client(server.url).register(OWN)


def test_a_server_in_trouble(server: Rendezvous) -> None:
    server.failing = (503, {"error": "the store is away"})
    with pytest.raises(RegistryUnavailable, match="answers 503: the store is away"):
        client(server.url).register(OWN)


def test_a_proxy_is_not_asked_for_a_server_near_by(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    client(server.url).register(OWN)
    with pytest.raises(RegistryUnavailable, match=r"by the proxy of this environment .*NO_PROXY"):
        client("http://registry.example:8089").register(OWN)


def test_what_a_proxy_forbids_is_no_wrong_key(server: Rendezvous) -> None:
    server.content_type = "text/html"
    server.failing = (403, {})
    with pytest.raises(RegistrationRefused) as info:
        client(server.url).register(OWN)
    assert "KEY" not in str(info.value) and "answers 403" in str(info.value)


def test_clocks_that_differ_are_told_once(
    server: Rendezvous, caplog: pytest.LogCaptureFixture
) -> None:
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=200)
    asking = client(server.url)
    asking.instances()
    assert asking.clock_text == ""
    server.headers["Date"] = format_datetime(later, usegmt=True)
    for _ in range(2):
        asking.instances()
    assert "s behind that of" in asking.clock_text
    assert sum("clock of this machine" in each.message for each in caplog.records) == 1


@pytest.mark.parametrize(
    "target", ["http://[::1", "http://\xff\xfe/", "https://elsewhere.example/x"]
)
def test_a_redirect_is_told_and_not_followed(server: Rendezvous, target: str) -> None:
    server.failing = (302, {})
    server.headers["Location"] = target
    with pytest.raises(RegistrationRefused, match=r"redirects to .*COMFY_CLUSTER_STUN_SERVER"):
        client(server.url).instances()


def test_the_body_of_a_redirect_is_bounded_and_stays_packed(server: Rendezvous) -> None:
    server.failing = (302, {})
    server.headers["Location"] = "https://elsewhere.example"
    server.raw_answer = b" " * (LARGEST_ANSWER + 1)
    with pytest.raises(RegistryUnavailable, match="more than 4 MiB"):
        client(server.url).instances()
    server.raw_answer = gzip.compress(bytes(1 << 20))
    server.headers["Content-Encoding"] = "gzip"
    with pytest.raises(RegistrationRefused, match="redirects"):
        client(server.url).instances()
