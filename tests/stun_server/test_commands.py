"""`comfy-cluster stun`: the operator's keys, and the server in a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result

from comfy_cluster.cli.main import cli
from stun_server.keys import fingerprint, hash_of
from stun_server.store import open_store
from tests.stun_server.apps import KEY, OTHER_KEY, lease_path, new_body, running_site
from tests.stun_server.asking import until
from tests.stun_server.servers import LOOPBACK, ROOT, RunningServer, free_port, running_server

REQUEST_TIMEOUT = (5.0, 40.0)  # seconds
ENDED = 10.0  # seconds; a third of what parked requests would wait
WAIT = 30

SOON = 3.0 / 3600  # hours; until then a test has done what must come before

Keys = Callable[..., Result]


@pytest.fixture
def keys(store_url: str) -> Keys:
    """`keys("add", "a")`: what the command told, with a store of each kind."""
    return keys_at(store_url)


def keys_at(store: str) -> Keys:
    runner = CliRunner(env={"STUN_STORE": store, "STUN_CLUSTER_KEYS": "configured=" + KEY})

    def run(*arguments: str, typed: str | None = None) -> Result:
        return runner.invoke(cli, ["stun", "keys", *arguments], input=typed)

    return run


def done(result: Result) -> str:
    """What it told, without the line's end."""
    assert result.exit_code == 0, result.output + result.stderr
    return result.stdout.rstrip("\n")


def failed(result: Result, code: int = 1) -> str:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


def told_of(key: str) -> str:
    return fingerprint(hash_of(key))


# Keys.


def test_a_new_cluster_gets_a_key_that_is_told_once(keys: Keys, store_url: str) -> None:
    key = done(keys("add", "a"))
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", key)
    assert done(keys("add", "b")) != key
    listed = done(keys("list", "a"))
    assert re.fullmatch(
        rf"{told_of(key)}  \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC by the operator", listed
    )
    with contextlib.closing(open_store(store_url)) as store:
        assert [each.key_hash for each in store.keys("a")] == [hash_of(key)]
        (event,) = store.audit("a", limit=10)
        assert (event.event, event.key_fingerprint) == ("key-add", told_of(key))
        assert key not in str(event)


def test_a_key_may_be_given_or_typed(keys: Keys) -> None:
    assert done(keys("add", "a", "--key", KEY)) == KEY
    assert done(keys("add", "b", "--key", "-", typed=OTHER_KEY + "\n")) == OTHER_KEY
    assert told_of(OTHER_KEY) in done(keys("list", "b"))


def test_a_cluster_with_a_key_gets_none_by_add(keys: Keys) -> None:
    done(keys("add", "a", "--key", KEY))
    assert "keys rotate" in failed(keys("add", "a"))
    assert done(keys("list", "a")).startswith(told_of(KEY))


def test_rotation_leaves_the_present_key_good_for_a_while(keys: Keys) -> None:
    done(keys("add", "a", "--key", KEY))
    done(keys("rotate", "a", "--key", OTHER_KEY))
    first, second = done(keys("list", "a")).splitlines()
    assert first.startswith(told_of(OTHER_KEY))
    assert second.startswith(told_of(KEY))
    assert ", ends 20" in second
    third = done(keys("rotate", "a"))
    assert [line[:8] for line in done(keys("list", "a")).splitlines()] == [
        told_of(third),
        told_of(OTHER_KEY),
    ]


def test_rotation_without_overlap_leaves_one_key(keys: Keys) -> None:
    done(keys("add", "a", "--key", KEY))
    key = done(keys("rotate", "a", "--overlap-hours", "0"))
    assert [line[:8] for line in done(keys("list", "a")).splitlines()] == [told_of(key)]


def test_rotation_needs_another_key_and_a_cluster_that_has_one(keys: Keys) -> None:
    assert "keys add" in failed(keys("rotate", "a"))
    done(keys("add", "a", "--key", KEY))
    assert "already" in failed(keys("rotate", "a", "--key", KEY))
    done(keys("rotate", "a", "--key", OTHER_KEY))
    assert "already" in failed(keys("rotate", "a", "--key", KEY))
    assert len(done(keys("list", "a")).splitlines()) == 2


def let_the_new_key_go(keys: Keys, hours: float) -> None:
    """After a rotation: what is left is the former key, which ends."""
    done(keys("add", "a", "--key", KEY))
    done(keys("rotate", "a", "--key", OTHER_KEY, "--overlap-hours", str(hours)))
    done(keys("remove", "a", "--fingerprint", told_of(OTHER_KEY)))


def has_none(keys: Keys) -> bool:
    return keys("list", "a").exit_code != 0


def test_a_cluster_whose_last_key_has_ended_gets_one_by_add(keys: Keys, store_url: str) -> None:
    let_the_new_key_go(keys, SOON)
    until(lambda: has_none(keys), "the former key has ended")
    assert "has no key in this store" in failed(keys("list", "a"))
    assert "keys add" in failed(keys("rotate", "a"))
    done(keys("add", "a", "--key", KEY))  # the one that had ended, too
    assert [line[:8] for line in done(keys("list", "a")).splitlines()] == [told_of(KEY)]
    with contextlib.closing(open_store(store_url)) as store:
        assert len(store.keys("a")) == 1


def test_a_cluster_whose_last_key_has_ended_is_freed_by_remove(keys: Keys, store_url: str) -> None:
    let_the_new_key_go(keys, SOON)
    until(lambda: has_none(keys), "the former key has ended")
    done(keys("remove", "a"))
    with contextlib.closing(open_store(store_url)) as store:
        assert store.keys("a") == ()
    assert "no such key" in failed(keys("remove", "a"))


def test_a_key_that_ends_can_be_rotated_and_ends_no_later(keys: Keys) -> None:
    let_the_new_key_go(keys, 1.0)
    ends = done(keys("list", "a")).partition(", ends ")[2]
    assert "keys rotate" in failed(keys("add", "a"))
    new = done(keys("rotate", "a"))
    first, second = done(keys("list", "a")).splitlines()
    assert (first[:8], second[:8]) == (told_of(new), told_of(KEY))
    assert second.endswith(f", ends {ends}")


def test_who_has_the_id_next_sees_nothing_of_before(keys: Keys, store_url: str) -> None:
    done(keys("add", "a", "--key", KEY))
    with running_site(store=store_url) as site:
        assert site.client(KEY).put(lease_path(), json=new_body()).status_code == 200
        done(keys("remove", "a"))
        other = site.client(OTHER_KEY)
        assert other.put(lease_path("a", "9"), json=new_body()).status_code == 200
        told = other.get("/v1/clusters/a").get_json()["instances"]
        assert [each["instance_id"] for each in told] == ["9"]
        events = other.get("/v1/clusters/a/audit").get_json()["events"]
        assert {each["instance_id"] for each in events} <= {"", "9"}


def test_keys_are_removed_one_or_all(keys: Keys) -> None:
    done(keys("add", "a", "--key", KEY))
    done(keys("rotate", "a", "--key", OTHER_KEY))
    assert "no such key" in failed(keys("remove", "a", "--fingerprint", "00000000"))
    done(keys("remove", "a", "--fingerprint", told_of(KEY)))
    assert done(keys("list", "a")).startswith(told_of(OTHER_KEY))
    removed = keys("remove", "a")
    assert done(removed) == ""
    logged = json.loads(removed.stderr)  # the only place that still tells of it
    assert (logged["event"], logged["cluster_id"]) == ("key-remove", "a")
    assert logged["logger"] == "stun_server.audit"
    assert "no key" in failed(keys("list", "a"))
    assert "no such key" in failed(keys("remove", "a"))


@pytest.mark.parametrize(
    "arguments", [("add", "../a"), ("list", ""), ("rotate", "a b"), ("remove", "a" * 129)]
)
def test_a_wrong_cluster_id_is_said(keys: Keys, arguments: tuple[str, ...]) -> None:
    assert "at most 128 letters" in failed(keys(*arguments), code=2)


@pytest.mark.parametrize("key", ["short", "with blanks in this long key", "\u00e9" * 32])
def test_a_weak_key_is_said_and_not_repeated(keys: Keys, key: str) -> None:
    for result in (keys("add", "a", "--key", key), keys("add", "a", "--key", "-", typed=key)):
        text = failed(result, code=2)
        assert "16 or more" in text
        assert key not in text


def test_keys_in_the_operators_settings_are_changed_there(keys: Keys) -> None:
    for command in ("add", "rotate", "remove"):
        assert "STUN_CLUSTER_KEYS" in failed(keys(command, "configured"))


def test_a_store_that_is_away_is_one_line(tmp_path: Path) -> None:
    away = keys_at(f"sqlite:///{tmp_path}/missing/registry.sqlite3")
    for arguments in (("add", "a"), ("list", "a"), ("rotate", "a"), ("remove", "a")):
        text = failed(away(*arguments))
        assert text.startswith("Error: STUN_STORE, the SQLite file ")
        assert text.count("\n") == 1


# Keys of a server that runs.


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Keys]]:
    folder = tmp_path_factory.mktemp("server")
    store = f"sqlite:///{folder}/registry.sqlite3"
    with running_server(folder, STUN_STORE=store, STUN_OPEN_REGISTRATION="false") as server:
        yield server, keys_at(store)


def put(server: RunningServer, cluster_id: str, key: str) -> int:
    answer = requests.put(
        server.url + lease_path(cluster_id),
        json=new_body(),
        headers={"X-Cluster-Key": key},
        timeout=REQUEST_TIMEOUT,
    )
    return answer.status_code


@pytest.mark.integration
def test_a_running_server_takes_each_change_of_keys(running: tuple[RunningServer, Keys]) -> None:
    server, keys = running
    assert put(server, "a", KEY) == 401  # it is not open for new clusters
    done(keys("add", "a", "--key", KEY))
    assert (put(server, "a", KEY), put(server, "a", OTHER_KEY)) == (200, 401)
    done(keys("rotate", "a", "--key", OTHER_KEY))
    assert (put(server, "a", KEY), put(server, "a", OTHER_KEY)) == (200, 200)
    done(keys("remove", "a", "--fingerprint", told_of(KEY)))
    assert (put(server, "a", KEY), put(server, "a", OTHER_KEY)) == (401, 200)
    done(keys("remove", "a"))
    assert put(server, "a", OTHER_KEY) == 401


@pytest.mark.integration
def test_a_key_that_ends_is_refused_from_then_on(running: tuple[RunningServer, Keys]) -> None:
    server, keys = running
    done(keys("add", "b", "--key", KEY))
    assert put(server, "b", KEY) == 200
    done(keys("rotate", "b", "--key", OTHER_KEY, "--overlap-hours", str(SOON)))
    until(lambda: put(server, "b", KEY) in (401, 429), "the former key has ended")
    assert put(server, "b", OTHER_KEY) == 200


# The server in a terminal.


def environ(tmp_path: Path, **given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STUN_")}
    defaults = {
        "STUN_SERVER_HOST": LOOPBACK,
        "STUN_SERVER_PORT": str(free_port()),
        "STUN_UDP_PORT": "off",
        "STUN_STORE": f"sqlite:///{tmp_path}/registry.sqlite3",
    }
    return kept | defaults | given


@contextlib.contextmanager
def serving(variables: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`stun serve`, from when it answers on."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "stun_server", "serve"],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: is_healthy(variables) or process.poll() is not None, "it answers")
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def is_healthy(variables: dict[str, str]) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(url_of(variables) + "/health", timeout=2.0).ok
    return False


def url_of(variables: dict[str, str]) -> str:
    return f"http://{LOOPBACK}:{variables['STUN_SERVER_PORT']}"


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_served_in_a_terminal_it_ends_at_once_though_requests_wait(
    tmp_path: Path, number: signal.Signals
) -> None:
    variables, log = environ(tmp_path), tmp_path / "serve.log"
    headers = {"X-Cluster-Key": KEY}

    def ask(path: str, method: str = "GET", **options: Any) -> requests.Response:
        return requests.request(
            method, url_of(variables) + path, headers=headers, timeout=REQUEST_TIMEOUT, **options
        )

    with serving(variables, log) as process, ThreadPoolExecutor(3) as pool:
        revision = ask(lease_path(), "PUT", json=new_body()).json()["cluster"]["revision"]
        parked = [
            pool.submit(ask, f"/v1/clusters/a?since={revision}&wait={WAIT}") for _ in range(3)
        ]
        until(lambda: "stun_waiting_requests 3.0" in ask("/metrics").text, "three wait")
        process.send_signal(number)
        assert process.wait(ENDED) == 0
        # The last answers may be cut off: the process does not stay for them.
        for answer in parked:
            with contextlib.suppress(requests.ConnectionError):
                assert answer.result(ENDED).status_code == 304
    text = log.read_text()
    assert f"Rendezvous server at {url_of(variables)}; Ctrl+C ends it" in text
    assert "Traceback" not in text
    with contextlib.closing(open_store(variables["STUN_STORE"])) as store:
        assert len(store.listing("a").leases) == 1


def serve_fails(tmp_path: Path, **given: str) -> str:
    """The line that `stun serve` ends with; Werkzeug may have had its say before."""
    ended = subprocess.run(
        [sys.executable, "-m", "stun_server", "serve"],
        cwd=ROOT,
        env=environ(tmp_path, **given),
        capture_output=True,
        text=True,
        timeout=60.0,
    )
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("Error: "), ended.stderr
    return last


@pytest.mark.integration
@pytest.mark.parametrize(
    ("variable", "kind", "advice"),
    [
        ("STUN_SERVER_PORT", socket.SOCK_STREAM, "set STUN_SERVER_HOST and STUN_SERVER_PORT"),
        ("STUN_UDP_PORT", socket.SOCK_DGRAM, "choose another port"),
    ],
)
def test_a_port_that_is_taken_is_said(
    tmp_path: Path, variable: str, kind: socket.SocketKind, advice: str
) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind((LOOPBACK, 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = str(taken.getsockname()[1])
        text = serve_fails(tmp_path, **{variable: port})
    assert port in text
    assert advice in text


@pytest.mark.integration
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STUN_SERVER_PORT", "70000"),
        ("STUN_INSTANCE_TIMEOUT", "never"),
        ("STUN_STORE", "mysql://localhost"),
        ("STUN_OPEN_REGISTRATION", "perhaps"),
    ],
)
def test_a_wrong_setting_is_said(tmp_path: Path, variable: str, value: str) -> None:
    text = serve_fails(tmp_path, **{variable: value})
    assert text.startswith(f"Error: Invalid {variable}={value!r}: expected ")


@pytest.mark.integration
def test_a_store_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/missing/registry.sqlite3"
    assert "STUN_STORE" in serve_fails(tmp_path, STUN_STORE=store)
    text = serve_fails(tmp_path, STUN_STORE=f"redis://{LOOPBACK}:{free_port()}/0")
    assert "STUN_STORE, Redis at" in text
    assert "redis://localhost:port" not in serve_fails(
        tmp_path, STUN_STORE="redis://:a-password@localhost:port/0"
    )
