"""Clients that are slow, silent, or send what is no HTTP: they stop nobody, and are told so."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from stun_server.client_socket import LARGEST_HEAD, ClientSocket, Head
from tests.stun_server.asking import KEY, TIMEOUT, register, until
from tests.stun_server.servers import LOOPBACK, RunningServer, running_server

HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
SMALL = {"STUN_WORKERS": "1", "STUN_THREADS": "4"}  # 16 connections
MANY = 40  # connections
SYSTEM_KEEPS = 6_000_000  # bytes; more than Linux keeps of a connection for a client


@pytest.fixture
def pair() -> Iterator[tuple[ClientSocket, socket.socket]]:
    """The server's socket and the client's."""
    one, client = socket.socketpair()
    server = ClientSocket(one)
    with server, client:
        client.settimeout(TIMEOUT)
        yield server, client


def test_a_timeout_is_for_all_that_is_read(pair: tuple[ClientSocket, socket.socket]) -> None:
    server, client = pair
    ends = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not ends.wait(0.01):
                client.sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            for _ in range(1000):
                server.recv(100)
    finally:
        ends.set()
        thread.join()


def test_an_answer_is_kept_for_who_does_not_take_it(
    pair: tuple[ClientSocket, socket.socket],
) -> None:
    server, client = pair
    text = bytes(range(256)) * 10_000
    server.sendall(text)
    server.sendall(b"end")
    assert server.unsent and not server.send_rest()
    received = bytearray()
    while not server.send_rest():
        received += client.recv(100_000)
    server.close()
    assert server.unsent == 0
    while piece := client.recv(100_000):
        received += piece
    assert received == text + b"end"


@pytest.mark.parametrize("head", [HEAD, b"GET / HTTP/1.1\n\n"])
@pytest.mark.parametrize("known", [0, 1, 10])
def test_a_head_is_read_ahead_and_then_received(
    pair: tuple[ClientSocket, socket.socket], head: bytes, known: int
) -> None:
    server, client = pair
    client.sendall(head[known:-1])
    assert server.look_for_head(head[:known]) is Head.SOME
    client.sendall(head[-1:])
    assert server.look_for_head(head[:known]) is Head.ALL
    assert server.recv(1) == head[known:]
    client.close()
    assert server.look_for_head() is Head.ALL
    assert server.recv(1) == b""


@pytest.mark.parametrize(
    ("begins", "found"), [(b"x", Head.ALL), (b"GET / HTTP/1.1\r\nX: x\r\n", Head.TOO_MUCH)]
)
def test_a_head_without_end_is_not_waited_for(
    pair: tuple[ClientSocket, socket.socket], begins: bytes, found: Head
) -> None:
    server, client = pair
    client.sendall(begins.ljust(LARGEST_HEAD - 1, b"x"))
    assert server.look_for_head() is Head.SOME
    client.sendall(b"x")
    assert server.look_for_head() is found


def test_an_end_behind_much_is_one(pair: tuple[ClientSocket, socket.socket]) -> None:
    server, client = pair
    client.sendall(HEAD + b"x" * LARGEST_HEAD)
    assert server.look_for_head() is Head.ALL


def connections(
    server: RunningServer, stack: contextlib.ExitStack, count: int
) -> list[socket.socket]:
    made = []
    for _ in range(count):
        made.append(stack.enter_context(socket.create_connection((LOOPBACK, server.port), TIMEOUT)))
    return made


def is_over(client: socket.socket) -> bool:
    """Whether the server has closed it, whatever it had sent before."""
    client.setblocking(False)
    try:
        while client.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.integration
@pytest.mark.parametrize("sent", [b"", HEAD[:-2], HEAD], ids=["silent", "half_a_head", "kept"])
def test_connections_do_not_run_out(tmp_path: Path, sent: bytes) -> None:
    with running_server(tmp_path, **SMALL) as server, contextlib.ExitStack() as stack:
        clients = connections(server, stack, MANY)
        for each in clients:
            with contextlib.suppress(OSError):
                each.sendall(sent)
        for _ in range(20):
            assert requests.get(f"{server.url}/health", timeout=TIMEOUT).status_code == 200
        until(lambda: is_over(clients[0]), "whoever waits longest makes room")


@pytest.mark.integration
def test_large_heads_without_end_hold_no_thread(tmp_path: Path) -> None:
    head = b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * (LARGEST_HEAD // 6 + 1)
    with running_server(tmp_path, **SMALL) as server, contextlib.ExitStack() as stack:
        for each in (clients := connections(server, stack, 12)):
            each.sendall(head)
        for each in clients:
            answer = http.client.HTTPResponse(each)
            answer.begin()
            assert (answer.status, json.loads(answer.read())["status"]) == (431, "error")
        assert requests.get(f"{server.url}/health", timeout=TIMEOUT).status_code == 200


@pytest.mark.integration
def test_who_is_too_slow_is_closed(tmp_path: Path) -> None:
    with running_server(tmp_path, **SMALL) as server, contextlib.ExitStack() as stack:
        silent, slow, deaf, kept = connections(server, stack, 4)
        kept.sendall(HEAD)
        deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 400)
        head = itertools.chain(HEAD[:-2], itertools.repeat(ord("x")))

        def all_closed() -> bool:
            with contextlib.suppress(OSError):
                slow.sendall(bytes([next(head)]))
            return is_over(silent) and is_over(slow)

        until(all_closed, "neither is waited for any longer")
        until(lambda: is_reset(deaf), "nor who takes no answer")
        assert not is_over(kept)
        assert "Traceback" not in server.log


def is_reset(client: socket.socket) -> bool:
    """Whether the server has closed it; reads nothing."""
    try:
        client.sendall(b" ")
    except OSError:
        return True
    return False


@pytest.mark.integration
def test_answers_that_nobody_takes_hold_no_thread(tmp_path: Path) -> None:
    with running_server(tmp_path, **SMALL) as server, contextlib.ExitStack() as stack:
        path = "/openapi.json"
        whole = requests.get(server.url + path, timeout=TIMEOUT).content
        count = SYSTEM_KEEPS // len(whole)
        for _ in range(6):  # there are 4 threads
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(TIMEOUT)
            client.connect((LOOPBACK, server.port))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * count)
        for _ in range(20):
            assert requests.get(f"{server.url}/health", timeout=TIMEOUT).status_code == 200
        assert set(answers(client, count)) == {whole}


def answers(client: socket.socket, count: int) -> list[bytes]:
    """To as many requests that were sent at once."""
    bodies = []
    with client.makefile("rb") as file:
        for _ in range(count):
            assert file.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = http.client.parse_headers(file)
            bodies.append(file.read(int(headers["Content-Length"])))
    return bodies


@pytest.mark.integration
def test_requests_in_one_piece_and_in_many_are_answered(tmp_path: Path) -> None:
    with running_server(tmp_path, **SMALL) as server, contextlib.ExitStack() as stack:
        together, apart = connections(server, stack, 2)
        together.sendall(HEAD * 500 + HEAD[:9])  # more than gunicorn reads at once
        assert len(answers(together, 500)) == 500
        together.sendall(HEAD[9:])
        assert answers(together, 1) == [b'{"status":"healthy"}\n']
        for _ in range(2):
            for byte in HEAD:
                apart.sendall(bytes([byte]))
            assert answers(apart, 1) == [b'{"status":"healthy"}\n']


@pytest.mark.integration
def test_bodies_that_no_route_reads_hold_no_thread(tmp_path: Path) -> None:
    head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 1000\r\n\r\n")
    with running_server(tmp_path, **SMALL) as server, contextlib.ExitStack() as stack:
        began = time.monotonic()
        for _ in range(MANY):
            client = connections(server, stack, 1)[0]
            client.sendall(head)
            assert client.recv(15) == b"HTTP/1.1 200 OK"
        until(lambda: is_over(client), "its rest is not waited for")
        assert time.monotonic() - began < TIMEOUT  # with five seconds of a thread each, 50


def post(source: str, more: str) -> bytes:
    """The head of a registration."""
    return (
        f"POST /register-instance HTTP/1.1\r\nHost: x\r\nX-Cluster-Key: {KEY}\r\n"
        f"X-Forwarded-For: {source}\r\n{more}\r\n\r\n"
    ).encode()


@pytest.mark.integration
def test_a_body_has_one_time_limit_and_a_source_some_places(tmp_path: Path) -> None:
    settings = {**SMALL, "STUN_THREADS": "16", "STUN_TRUSTED_PROXIES": "1"}  # 4 places
    with running_server(tmp_path, **settings) as server, contextlib.ExitStack() as stack:
        assert register(server.url, "c", "0").status_code == 200
        clients = connections(server, stack, 4)
        for each in clients:
            each.sendall(post("203.0.113.1", "Content-Length: 1000") + b"{")
        until(lambda: len(answered_of(clients)) == 2, "two have places")  # in whichever order
        refused = answered_of(clients)
        assert {each.recv(12) for each in refused} == {b"HTTP/1.1 503"}
        assert register(server.url, "c", "1").status_code == 200  # another source
        slow = next(each for each in clients if each not in refused)

        def answered() -> bool:
            slow.sendall(b" ")
            slow.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                return slow.recv(12) == b"HTTP/1.1 408"
            return False

        until(answered, "a byte now and then prolongs nothing")
        last = connections(server, stack, 1)[0]
        last.sendall(post("203.0.113.1", "Content-Length: 2") + b"{}")
        assert last.recv(12) == b"HTTP/1.1 400"  # the place is free


def answered_of(clients: list[socket.socket]) -> list[socket.socket]:
    return select.select(clients, [], [], 0)[0]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (post("", "Transfer-Encoding: chunked") + b"zz\r\n", 400, "invalid_request"),
        (post("", "Transfer-Encoding: chunked") + b"1\r\nxxx\r\n", 400, "invalid_request"),
        (b"no HTTP\r\n\r\n", 400, "bad_request"),
        (HEAD.replace(b"Host", b"Ho\x00st"), 400, "bad_request"),
        (HEAD.replace(b"x", b"x" * 9000), 431, "request_header_fields_too_large"),
    ],
)
def test_what_is_no_http_is_refused_as_all_else(
    server: RunningServer, sent: bytes, status: int, code: str
) -> None:
    with socket.create_connection((LOOPBACK, server.port), TIMEOUT) as client:
        client.sendall(sent)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        told = json.loads(answer.read())
    assert (answer.status, told["status"], told["code"]) == (status, "error", code)
    assert answer.headers["Content-Type"] == "application/json"
    assert told["error"] and "request_id" in told
    assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("refusing"), **SMALL) as server:
        yield server
