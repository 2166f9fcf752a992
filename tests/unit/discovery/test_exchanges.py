"""HTTP exchanges end: whatever the server does, and whenever somebody interrupts them."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from comfy_cluster.discovery.exchanges import (
    LARGEST_ANSWER,
    Answer,
    AnswerTooLarge,
    Exchanges,
)
from tests.unit.discovery.rendezvous import Rendezvous, dripping_tls_server

SHORT = 0.2  # seconds that an exchange has
LONG = 20.0  # seconds; a bound for a broken build, never waited for in a good one
PROMPT = 2.0  # seconds; above `SHORT` and what a busy machine adds


@pytest.fixture
def server() -> Iterator[Rendezvous]:
    with Rendezvous() as made:
        made.keys["c"] = "k"
        yield made


def ask(url: str, *, timeout: float = LONG, exchanges: Exchanges | None = None) -> Answer:
    options: dict[str, Any] = {"headers": {"X-Cluster-Key": "k"}}
    asking = exchanges or Exchanges()
    try:
        return asking.ask("GET", url, timeout=timeout, **options)
    finally:
        if exchanges is None:
            asking.close()


def test_an_answer(server: Rendezvous) -> None:
    answer = ask(server.url + "/instances/c")
    assert (answer.status, answer.json()["instances"]) == (200, [])


@pytest.mark.parametrize("how", ["silence", "headers", "body"])
def test_an_answer_that_never_ends_has_its_time(server: Rendezvous, how: str) -> None:
    """Each byte comes in time; all of them never."""
    server.stalling = how
    exchanges = Exchanges()
    began = time.monotonic()
    with pytest.raises(requests.Timeout):
        ask(server.url, timeout=SHORT, exchanges=exchanges)
    assert time.monotonic() - began < PROMPT
    server.stalling = None
    assert ask(server.url + "/instances/c", exchanges=exchanges).status == 200
    exchanges.close()


def test_a_tls_handshake_that_never_ends_has_its_time() -> None:
    with dripping_tls_server() as url, pytest.raises(requests.Timeout):
        ask(url, timeout=SHORT)


def test_an_answer_that_is_too_large_is_not_read_to_its_end(server: Rendezvous) -> None:
    server.stalling = "endless"
    with pytest.raises(AnswerTooLarge):
        ask(server.url)


def test_a_large_answer_that_tells_its_size_is_not_read_either(server: Rendezvous) -> None:
    server.raw_answer = b" " * (LARGEST_ANSWER + 1)
    with pytest.raises(AnswerTooLarge):
        ask(server.url + "/instances/c")
    server.raw_answer = b" " * LARGEST_ANSWER
    assert len(ask(server.url + "/instances/c").body) == LARGEST_ANSWER


@pytest.mark.parametrize("status", [200, 302])
def test_what_is_packed_stays_packed(server: Rendezvous, status: int) -> None:
    server.raw_answer = gzip.compress(bytes(200 << 20), 1)
    server.failing = (status, {})
    server.headers = {"Content-Encoding": "gzip", "Location": "/elsewhere"}
    assert ask(server.url + "/instances/c").body == server.raw_answer


@pytest.mark.parametrize("target", ["http://[::1", "http://\xff\xfe/", "foo://x", "/elsewhere"])
def test_a_redirect_is_an_answer_wherever_it_leads(server: Rendezvous, target: str) -> None:
    server.failing = (302, {})
    server.headers["Location"] = target
    answer = ask(server.url + "/instances/c")
    assert (answer.status, answer.headers["Location"]) == (302, target)
    assert len(server.asked) == 1


def test_the_body_of_a_redirect_has_the_same_largest_size(server: Rendezvous) -> None:
    server.failing = (302, {})
    server.headers["Location"] = "/elsewhere"
    server.raw_answer = bytes(LARGEST_ANSWER + 1)
    with pytest.raises(AnswerTooLarge):
        ask(server.url + "/instances/c")


def test_whoever_is_interrupted_asks_no_more(server: Rendezvous) -> None:
    server.stalling = "silence"
    exchanges = Exchanges()

    def interrupt() -> None:
        server.wait_for("GET")
        exchanges.interrupt()

    asked = threading.Thread(target=interrupt)
    asked.start()
    for _ in range(2):
        with pytest.raises(requests.Timeout):
            ask(server.url, exchanges=exchanges)
    asked.join()
    assert len(server.asked) == 1


def test_one_connection_serves_all_questions(server: Rendezvous) -> None:
    exchanges = Exchanges()
    for _ in range(5):
        ask(server.url + "/instances/c", exchanges=exchanges)
    exchanges.close()
    assert server.connection_count == 1


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a name with five addresses that never take a connection: the kernel's queue of
    each is full."""
    real = socket.getaddrinfo

    def resolve(hostname: str, port: int, *arguments: Any, **options: Any) -> Any:
        if hostname != "five.example":
            return real(hostname, port, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))] * 5

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://five.example:{listening.getsockname()[1]}/"


def test_connecting_to_all_addresses_of_a_name_has_its_time_together(full: str) -> None:
    began = time.monotonic()
    with pytest.raises(requests.Timeout):
        ask(full, timeout=0.5)
    assert time.monotonic() - began < PROMPT


def test_connecting_is_interrupted(full: str) -> None:
    exchanges = Exchanges()
    began = time.monotonic()
    threading.Timer(0.1, exchanges.interrupt).start()
    with pytest.raises(requests.Timeout):
        ask(full, exchanges=exchanges)
    assert time.monotonic() - began < PROMPT


def test_the_next_address_of_a_name_is_tried(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refusing = free.getsockname()
        places = [refusing, ("127.0.0.1", server.port)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in places]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        assert ask("http://two.example/instances/c").status == 200


@pytest.mark.parametrize("name", ["nowhere.invalid", "x" * 70 + ".example", "a..example"])
def test_a_name_without_an_address(name: str) -> None:
    with pytest.raises(requests.RequestException):
        ask(f"http://{name}/")


class NoThread(threading.Timer):
    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def test_without_a_thread_for_its_time_nothing_is_asked(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "Timer", NoThread)
    with pytest.raises(requests.ConnectionError, match="can't start new thread"):
        ask(server.url + "/instances/c")
    assert not server.asked


def test_at_the_end_of_the_interpreter_it_is_asked_all_the_same(
    server: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "Timer", NoThread)
    monkeypatch.setattr(threading.main_thread(), "is_alive", lambda: False)
    assert ask(server.url + "/instances/c").status == 200
