"""Workers of the server as they are run: keys that are read again, slow clients, quick stops."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
import requests

from tests.stun_server.asking import KEY, TIMEOUT, ask, register, until
from tests.stun_server.servers import LOOPBACK, RunningServer, running_server, stop_server

pytestmark = pytest.mark.integration

FIRST = "the-first-key-of-this-file"
SECOND = "the-second-key-of-this-file"
SLOW_CLIENTS = 300  # more than a worker has threads
STOP_LIMIT = 2.0  # seconds; a requirement
BUSY = 2.0  # times that on a machine with other work


def workers(server: RunningServer) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


def opens(server: RunningServer, key: str) -> bool:
    """Whether this key opens cluster c; a worker that ends counts as a no."""
    with contextlib.suppress(requests.ConnectionError):
        url = f"{server.url}/instances/c"
        return ask("GET", url, headers={"X-Cluster-Key": key}).status_code == 200
    return False


def test_sighup_reads_the_file_of_keys_again(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"c = {FIRST}\n")
    with running_server(tmp_path, STUN_CLUSTER_KEYS_FILE=str(keys)) as server:
        assert opens(server, FIRST) and not opens(server, SECOND)
        keys.write_text(f"c = {SECOND}\n")
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: opens(server, SECOND), "the new key opens the cluster")


def test_a_mistake_in_the_file_of_keys_changes_nothing(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"c = {FIRST}\n")
    with running_server(tmp_path, STUN_CLUSTER_KEYS_FILE=str(keys)) as server:
        keys.write_text("c = short\n")
        before = workers(server)
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: "the settings of before are kept" in server.log, "it says so")
        until(lambda: len(workers(server)) == 2 and not workers(server) & before, "workers are new")
        until(lambda: opens(server, FIRST), "the key of before opens the cluster")
        victim = min(workers(server))
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(workers(server) - {victim}) == 2, "the master replaces it")
        until(lambda: opens(server, FIRST), "and again")
        assert server.process.poll() is None


def test_clients_that_send_no_body_stop_nobody_else(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, contextlib.ExitStack() as stack:
        assert register(server.url, "c", "0").status_code == 200
        head = (
            f"POST /register-instance HTTP/1.1\r\nHost: x\r\nX-Cluster-Key: {KEY}\r\n"
            "Content-Length: 1000\r\n\r\n{"
        )
        slow = []
        for _ in range(SLOW_CLIENTS):
            slow.append(stack.enter_context(socket.create_connection((LOOPBACK, server.port))))
            slow[-1].sendall(head.encode())
        for _ in range(20):
            assert ask("POST", f"{server.url}/heartbeat/c/0").status_code == 200
        for each in slow:
            each.settimeout(TIMEOUT)
        answers = {each.recv(12) for each in slow}
        assert answers <= {b"HTTP/1.1 408", b"HTTP/1.1 503"}
        until(lambda: register(server.url, "c", "1").status_code == 200, "bodies are taken again")


@pytest.mark.parametrize("whole", [True, False], ids=["that_comes_whole", "that_never_ends"])
def test_an_answer_to_half_a_body_is_not_taken_back_by_the_rest(
    tmp_path: Path, whole: bool
) -> None:
    head = (
        f"POST /register-instance HTTP/1.1\r\nHost: x\r\nX-Cluster-Key: {KEY}\r\n"
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    piece = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    with (
        running_server(tmp_path, STUN_WORKERS="1") as server,
        socket.create_connection((LOOPBACK, server.port), TIMEOUT) as client,
    ):
        client.sendall(head.encode() + 70 * piece)
        select.select([client], [], [], TIMEOUT)
        for _ in range(100):  # the first one would bring a reset, and the next fail
            client.sendall(piece)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == 413
        assert json.loads(answer.read())["code"] == "request_entity_too_large"
        assert register(server.url, "c", "0").status_code == 200  # it holds nobody else up
        if whole:
            client.sendall(b"0\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
        else:
            until(lambda: is_closed(client), "the server waits no longer")


def is_closed(client: socket.socket) -> bool:
    try:
        client.sendall(b"1\r\nx\r\n")
    except OSError:
        return True
    return False


def test_an_idle_connection_holds_up_no_stop(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, requests.Session() as session:
        for _ in range(4):  # one at each worker, as it comes
            assert session.get(f"{server.url}/health", timeout=TIMEOUT).status_code == 200
        began = time.monotonic()
        assert stop_server(server) == 0
        assert time.monotonic() - began < STOP_LIMIT * BUSY


def test_metrics_outlast_a_file_that_a_worker_has_only_begun(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    with running_server(tmp_path, PROMETHEUS_MULTIPROC_DIR=str(folder)) as server:
        begun = folder / "counter_1.db"
        begun.touch()
        answer = requests.get(f"{server.url}/metrics", timeout=TIMEOUT)
        assert answer.status_code == 200 and "stun_store_up 1.0" in answer.text
        begun.unlink()
        answer = requests.get(f"{server.url}/metrics", timeout=TIMEOUT)
        assert "stun_http_requests_total" in answer.text
