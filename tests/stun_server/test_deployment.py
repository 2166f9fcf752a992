"""The server as it is run: gunicorn with its workers, both stores, restarts, losses, curl."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from prometheus_client.multiprocess import MultiProcessCollector

from tests.stun_server.asking import (
    KEY,
    TIMEOUT,
    ask,
    listed,
    register,
    sample,
    until,
    waiting,
)
from tests.stun_server.programs import program
from tests.stun_server.redis_server import PROGRAM, WHY_SKIPPED, RedisServer
from tests.stun_server.servers import (
    ROOT,
    RunningServer,
    kill_server,
    running_server,
    start_server,
    stop_server,
)

pytestmark = pytest.mark.integration

STOP_LIMIT = 2.0  # seconds; a requirement
BUSY = 2.0  # times that on a machine with other work


def workers(server: RunningServer) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


@pytest.fixture(scope="module", params=["sqlite", "redis"], name="server")
def server_on_each_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """One on each store, for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        settings = {}
        if request.param == "redis":
            if PROGRAM is None:
                pytest.skip(WHY_SKIPPED)
            redis_server = RedisServer.start(folder)
            stack.callback(redis_server.stop)
            settings["STUN_STORE"] = redis_server.url
        yield stack.enter_context(running_server(folder, port=None, **settings))


# What the document says to type, and what it says is answered.


def curl_lines() -> list[tuple[str, str]]:
    document = ROOT / "docs" / "stun-api.md"
    if not document.exists():
        pytest.skip("this copy of the project has no docs/stun-api.md")
    text = document.read_text(encoding="utf-8")
    passage = text.split("<!-- curl -->\n")[1].split("<!-- end -->")[0]
    found = re.findall(r"```sh\n(.*?)```\n\n```json\n(.*?)```", passage, re.DOTALL)
    assert len(found) == passage.count("```sh") > 5
    return found


def without_times(text: str) -> str:
    return re.sub(r'"last_ping":"\d{4}-\d\d-\d\dT[\d:.]{12}\+00:00"', '"last_ping":"then"', text)


def test_curl_lines_of_the_document_answer_what_it_says(server: RunningServer) -> None:
    program("curl")
    environ = {**os.environ, "STUN": server.url, "KEY": KEY, "NO_PROXY": "*"}
    for line, answer in curl_lines():
        done = subprocess.run(
            ["bash", "-c", line], env=environ, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, (line, done.stderr)
        assert without_times(done.stdout) == without_times(answer), line


def test_metrics_are_those_of_all_workers_together(server: RunningServer) -> None:
    folder = next(server.log_path.parent.glob("stun-server-metrics-*"))
    labels = {"route": "/livez", "method": "GET", "status": "200"}

    def of_worker(path: Path) -> float:
        return sum(
            each.value
            for family in MultiProcessCollector.merge([str(path)])  # type: ignore[no-untyped-call]
            for each in family.samples
            if each.name == "stun_http_requests_total" and labels.items() <= each.labels.items()
        )

    sent = 0
    deadline = time.monotonic() + TIMEOUT
    with ThreadPoolExecutor(8) as pool:
        while sum(map(bool, map(of_worker, folder.glob("counter_*.db")))) < 2:
            assert time.monotonic() < deadline, "one worker gets all requests"
            answers = pool.map(lambda _: ask("GET", f"{server.url}/livez").status_code, range(16))
            assert set(answers) == {200}
            sent += 16
    told = requests.get(f"{server.url}/metrics", timeout=10).text
    assert sample(told, "stun_http_requests_total", **labels) == sent


def test_bodies_of_unknown_length_have_the_limit_too(server: RunningServer) -> None:
    url = f"{server.url}/register-instance"
    assert ask("POST", url, data=(b" " * 1000 for _ in range(60))).status_code == 400
    answer = ask("POST", url, data=(b" " * 1000 for _ in range(70)))
    assert answer.status_code == 413
    assert answer.json()["code"] == "request_entity_too_large"


# Losses.


def test_nothing_acknowledged_is_lost_with_a_worker(tmp_path: Path) -> None:
    wanted = [(f"storm-{number % 10}", f"{number // 10}") for number in range(500)]
    acknowledged: list[tuple[str, str]] = []
    failed: list[tuple[str, str]] = []

    def one(name: tuple[str, str]) -> None:
        try:
            answer = register(server.url, *name)
        except requests.RequestException:  # perhaps in the middle of its answer
            failed.append(name)
            return
        if answer.status_code == 503:  # a busy machine: it is to be tried again
            failed.append(name)
            return
        assert answer.status_code == 200, answer.text
        acknowledged.append(name)

    def all_listed() -> set[tuple[str, str]]:
        clusters = {cluster_id for cluster_id, _ in acknowledged}
        return {(each, name) for each in clusters for name in listed(server.url, each)}

    with running_server(tmp_path) as server, ThreadPoolExecutor(32) as pool:
        before = workers(server)
        assert len(before) == 2
        storm = [pool.submit(one, name) for name in wanted]
        until(lambda: len(acknowledged) >= 100, "100 registrations")
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        for each in storm:
            each.result()
        assert len(acknowledged) + len(failed) == 500
        assert set(acknowledged) <= all_listed()
        until(lambda: len(workers(server) - {victim}) == 2, "the master replaces the worker")
        while failed:
            one(failed.pop())
        assert set(wanted) == set(acknowledged) == all_listed()


def test_leases_outlast_a_server_that_was_away(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    try:
        assert register(server.url, "c", "0").status_code == 200
        before = ask("GET", f"{server.url}/v1/clusters/c").json()
        kill_server(server)
        an_hour_passes(tmp_path / "registry.sqlite3")
        server = start_server(tmp_path, port=server.port)
        after = ask("GET", f"{server.url}/v1/clusters/c").json()
        assert [each["instance_id"] for each in after["instances"]] == ["0"]
        assert (after["epoch"], after["revision"]) == (before["epoch"], before["revision"])
        assert ask("POST", f"{server.url}/heartbeat/c/0").status_code == 200
    finally:
        stop_server(server)


def an_hour_passes(store: Path) -> None:
    """While no server runs: all that it remembers is as much longer ago."""
    with contextlib.closing(sqlite3.connect(store)) as connection, connection:
        assert connection.execute("UPDATE leases SET expires_at = expires_at - 3600").rowcount == 1
        connection.execute("UPDATE meta SET value = value - 3600 WHERE name = 'alive_at'")


def test_server_stops_at_once_though_requests_wait(tmp_path: Path) -> None:
    codes: list[int] = []

    def wait_for_change() -> None:
        headers = {"If-None-Match": etag}
        answer = ask("GET", f"{server.url}/instances/c?wait=30", headers=headers)
        codes.append(answer.status_code)

    with running_server(tmp_path) as server:
        assert register(server.url, "c", "0").status_code == 200
        etag = ask("GET", f"{server.url}/instances/c").headers["ETag"]
        threads = [threading.Thread(target=wait_for_change) for _ in range(50)]
        for thread in threads:
            thread.start()
        until(lambda: waiting(server) == 50, "50 requests wait")
        began = time.monotonic()
        assert stop_server(server) == 0
        seconds = time.monotonic() - began
        print(f"stopped after {seconds:.2f} s")
        for thread in threads:
            thread.join(TIMEOUT)
        assert codes == [304] * 50  # nobody's connection was cut
        assert seconds < STOP_LIMIT * BUSY
