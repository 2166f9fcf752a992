"""Requests that nobody sends in good faith: the server keeps to its document, and clusters apart.

schemathesis makes requests of the OpenAPI document, right and wrong ones. Hypothesis plays a client
with the key of one cluster that is after another one's.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.serving import WSGIRequestHandler, make_server

from stun_server.keys import fingerprint, hash_of
from tests.long import IS_LONG
from tests.stun_server.apps import (
    KEY,
    OTHER_KEY,
    Site,
    lease_path,
    new_body,
    old_body,
    running_site,
)
from tests.stun_server.asking import sample
from tests.stun_server.servers import LOOPBACK, ROOT

TIMEOUT = 240.0  # seconds of schemathesis, which needs 10 on a quiet machine
RUN = "from schemathesis.cli import schemathesis; schemathesis()"
MARKER = "marker-of-b"  # in ids that the other client may know, or guess
# What it cannot know, and never says itself.
SECRETS = [
    *(f"{MARKER}-{name}" for name in ("address", "candidate", "request")),
    *(OTHER_KEY, hash_of(OTHER_KEY), fingerprint(hash_of(OTHER_KEY))),
]
# Each is asked from twice at most.
SOURCES = itertools.cycle(f"10.{a}.{b}.1" for a, b in itertools.product(range(256), repeat=2))


# The document.


@pytest.fixture
def fuzzed_site(tmp_path: Path) -> Iterator[tuple[Site, str]]:
    """A site and its URL. Each request has a source of its own, so that no limit answers first."""
    with running_site(store=f"sqlite:///{tmp_path}/registry.sqlite3") as site:
        call = from_everywhere(site.app)
        server = make_server(LOOPBACK, 0, call, threaded=True, request_handler=Silent)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield site, f"http://{LOOPBACK}:{server.port}"
        server.shutdown()
        thread.join()
        server.server_close()


class Silent(WSGIRequestHandler):
    """Logs nothing: each of a thousand requests would be in the output of a failed test."""

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


def from_everywhere(app: Flask) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    def call(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        environ["REMOTE_ADDR"] = next(SOURCES)
        return app(environ, start)

    return call


@pytest.mark.integration
@pytest.mark.skipif(not importlib.util.find_spec("schemathesis"), reason="needs schemathesis")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--header", f"X-Cluster-Key: {KEY}", "--max-examples", "5"), id="key"),
        pytest.param(
            (
                *("--generation-with-security-parameters", "false"),
                *(("--phases", "coverage") if IS_LONG else ("--max-examples", "6")),
                *(() if IS_LONG else ("--phases", "fuzzing")),
            ),
            id="no-key",
        ),
    ],
)
def test_the_server_keeps_to_its_document(
    fuzzed_site: tuple[Site, str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    site, url = fuzzed_site
    site.client().put(lease_path(), json=new_body())  # so that there is something to find
    done = subprocess.run(
        [
            *(sys.executable, "-c", RUN, "run", f"{url}/openapi.json", *options),
            *("--seed", "1", "--generation-database", "none", "--no-color"),
        ],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.stun_server.schemathesis_hooks",
            "NO_PROXY": "*",
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert made is not None, done.stdout
    assert int(made[1]) > 50
    assert site.client().get("/v1/clusters/a").status_code == 200


def test_methods_of_a_strangers_choice_do_not_fill_the_metrics(tmp_path: Path) -> None:
    with running_site(store=f"sqlite:///{tmp_path}/registry.sqlite3") as site:
        client = site.client(key="")
        client.open("/health", method="BREW")
        client.get("/metrics")  # which is counted itself
        before = len(client.get("/metrics").text)
        for number in range(50):
            assert client.open("/health", method=f"BREW{number}").status_code == 405
        exposition = client.get("/metrics").text
        assert sample(exposition, "stun_http_requests_total") > 50
        assert len(exposition) < before + 1000


# One cluster's client and another cluster.

ids = st.sampled_from(
    [
        "a",
        "b",
        "c",
        "B",
        "b.",
        "a/../b",
        "..%2fb",
        "b%00",
        "b%20",
        "%62",
        "*",
        "b*",
        "[ab]",
        "b%3F",
        "-",
    ]
)
instances = st.sampled_from(
    ["0", "1", f"{MARKER}-0", f"{MARKER}-1", "../0", "%2e%2e", "*", "", "heartbeat", "instances"]
)
runs = st.sampled_from(["run-1", f"{MARKER}-run", "*", ""])
bodies: st.SearchStrategy[Any] = (
    st.builds(old_body, cluster_id=ids, instance_id=instances)
    | st.builds(new_body, boot_id=runs, take_over=st.booleans())
    | st.builds(dict, boot_id=runs)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | ids,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ids, inner, max_size=3),
        max_leaves=5,
    )
)
queries = st.dictionaries(
    st.sampled_from(["since", "boot_id", "limit", "cluster_id", "key", "wait"]),
    st.sampled_from(["0", "1", "0.01", "b", f"{MARKER}-run", "*", "1795681304"]),
    max_size=3,
)
paths = st.one_of(
    st.builds("/instances/{}".format, ids),
    st.builds("/heartbeat/{}/{}".format, ids, instances),
    st.builds("/instance/{}/{}".format, ids, instances),
    st.builds("/v1/clusters/{}".format, ids),
    st.builds("/v1/clusters/{}/audit".format, ids),
    st.builds("/v1/clusters/{}/instances/{}".format, ids, instances),
    st.builds("/v1/clusters/{}/instances/{}/heartbeat".format, ids, instances),
    st.builds("/v1/clusters/a/instances/..%2f..%2fb%2finstances%2f{}".format, instances),
    st.sampled_from(["/register-instance", "/v1/clusters", "/metrics", "/health", "/openapi.json"]),
)
# What such a client may have got hold of, short of the other cluster's key.
keys = st.just(KEY) | st.sampled_from(
    [
        "",
        *(OTHER_KEY[:-1], OTHER_KEY + "x", OTHER_KEY.upper(), f"{KEY},{OTHER_KEY[:-1]}"),
        *(hash_of(OTHER_KEY), fingerprint(hash_of(OTHER_KEY))),
    ]
)
requests_of_a = st.one_of(
    [
        st.fixed_dictionaries(
            {"path": path, "method": method, "query_string": queries, "json": body}
        )
        for path, method, body in [
            (paths, st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"]), bodies),
            (paths, st.sampled_from(["GET", "DELETE"]), st.none()),
            (st.just("/register-instance"), st.just("POST"), st.builds(old_body, ids, instances)),
            (
                st.builds(lease_path, ids, instances),
                st.just("PUT"),
                st.builds(new_body, boot_id=runs, take_over=st.booleans()),
            ),
        ]
    ]
)
headers_of_a = st.fixed_dictionaries(
    {"X-Cluster-Key": keys},
    optional={
        "If-None-Match": st.sampled_from(["*", 'W/"x-0"']),
        "X-Forwarded-For": st.just("192.0.2.77"),
        "X-HTTP-Method-Override": st.sampled_from(["DELETE", "PUT"]),
        "X-Cluster-Id": st.just("b"),
        "X-Original-URL": st.just("/v1/clusters/b"),
    },
)


@pytest.fixture
def shared_site(store_url: str) -> Iterator[Site]:
    """A site with the clusters `a`, of the client that is played, and `b`."""
    with running_site(store=store_url, instance_timeout=600.0) as site:
        site.client().put(lease_path(), json=new_body())
        other = site.client(OTHER_KEY, X_Request_ID=f"{MARKER}-request")
        candidate = {"type": "host", "address": f"{MARKER}-candidate", "port": 1}
        for number in range(2):
            body = new_body(
                boot_id=f"{MARKER}-run", address=f"{MARKER}-address", candidates=[candidate]
            )
            answer = other.put(lease_path("b", f"{MARKER}-{number}"), json=body)
            assert answer.status_code == 200
        yield site


def all_of_b(site: Site) -> tuple[Any, ...]:
    store = site.service.store
    listing = store.listing("b")
    assert len(listing.leases) == 2
    return (
        *(listing.epoch, listing.revision, listing.leases),
        *(store.keys("b"), store.audit("b", limit=1000)),
        store.clusters_with_key(hash_of(OTHER_KEY)),
    )


def test_a_clusters_client_neither_sees_nor_changes_another_cluster(shared_site: Site) -> None:
    before = all_of_b(shared_site)
    client = shared_site.app.test_client()
    counts = {"answers": 0, "successes": 0}

    @settings(
        max_examples=400,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(request=requests_of_a, headers=headers_of_a)
    def play(request: dict[str, Any], headers: dict[str, str]) -> None:
        source = {"REMOTE_ADDR": next(SOURCES)}
        for _ in range(2):  # the second meets what the first may have left
            answer = client.open(headers=headers, environ_overrides=source, **request)
            told = answer.get_data(as_text=True) + str(answer.headers)
            assert answer.status_code < 500, told
            assert not [secret for secret in SECRETS if secret in told]
            counts["answers"] += 1
            counts["successes"] += answer.status_code < 300
        assert all_of_b(shared_site) == before

    play()
    assert counts["successes"] > counts["answers"] / 20  # it came in where it may
    assert shared_site.client().put(lease_path(), json=new_body()).status_code in (200, 409)
    assert shared_site.client(OTHER_KEY).get("/v1/clusters/b").status_code == 200
