"""`comfy-cluster status`: what a running ComfyUI tells, and what is said when it does not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from comfy_cluster.cli import status
from comfy_cluster.cli.main import cli
from comfy_cluster.cluster.info import ClusterInfo, PeerSummary
from comfy_cluster.cluster.state import InstanceState
from comfy_cluster.config import RegistrationMode, Role
from comfy_cluster.errors import ClusterError, ConfigError, DiscoveryError

PEER = PeerSummary(1, Role.FOLLOWER, "10.0.0.2:9998", True, 0.0012, 5_000_000, 700, 3)
GONE = PeerSummary(
    2, Role.FOLLOWER, "10.0.0.3:9998", False, None, 0, 0, 0, trouble="it counts 5 instances"
)
INFO = ClusterInfo(
    instance_index=0,
    instance_count=3,
    min_instances=3,
    connected_count=2,
    role=Role.LEADER,
    state=InstanceState.POPULATING,
    registration_mode=RegistrationMode.BROADCAST,
    cluster_id="studio",
    engine="compiled",
    peers=(replace(PEER, packet_size=1472, software_version="0.1.0"), GONE),
    stats={"messages_sent": 4},
    failure="out of sockets",
)


class Answers(HTTPServer):
    """A ComfyUI that answers one thing."""

    status = 200
    body = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """The tests have no use for it."""


@pytest.fixture
def comfyui() -> Iterator[Answers]:
    with Answers(("127.0.0.1", 0), Handler) as server:
        server.body = INFO.to_json().encode()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def run(*arguments: str, **environ: str) -> tuple[int, str]:
    """Exit code and output, or the text of the ClusterError."""
    done = CliRunner().invoke(cli, ["status", *arguments], env={"COLUMNS": "200", **environ})
    if done.exception is not None and isinstance(done.exception, ClusterError):
        return 1, str(done.exception)
    return done.exit_code, done.output


def test_all_of_it_survives_json() -> None:
    assert ClusterInfo.parse(INFO.to_json()) == INFO


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"peers": [1]}', '{"peers": [], "state": "X"}'])
def test_something_else_is_no_status(text: str) -> None:
    with pytest.raises(ValueError):
        ClusterInfo.parse(text)


def test_the_table(comfyui: Answers) -> None:
    code, output = run("--url", comfyui.url)
    assert code == 0
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert lines[0] == "Instance 0 of 3 (LEADER), POPULATING. Connected: 2/3 instances"
    assert lines[1] == "out of sockets"
    assert "Cluster studio, registration broadcast, engine compiled" in lines[2]
    (one,) = [line for line in lines if line.startswith("1 (FOLLOWER)")]
    assert one == "1 (FOLLOWER) 10.0.0.2:9998 connected, UDP 1.20 ms 5.0 MB 700 B 3 1472 B 0.1.0"
    assert any("not connected (it counts 5 instances)" in line for line in lines)


def test_json_is_what_was_told(comfyui: Answers) -> None:
    code, output = run("--json", COMFY_CLUSTER_COMFY_PORT=comfyui.url.rpartition(":")[2])
    assert code == 0 and json.loads(output) == json.loads(INFO.to_json())


def test_nobody_answers() -> None:
    code, output = run("--url", "http://127.0.0.1:1")
    assert code == 1 and "no ComfyUI answers at http://127.0.0.1:1" in output


@pytest.mark.parametrize(
    ("status_code", "body", "error", "text"),
    [
        (404, b"", DiscoveryError, "has no ComfyUI Cluster"),
        (503, b'{"error": {"message": "Missing required"}}', ConfigError, "says: Missing required"),
        (500, b"<html>", ConfigError, "says: 500"),
    ],
)
def test_a_comfyui_that_cannot_tell(
    comfyui: Answers, status_code: int, body: bytes, error: type[Exception], text: str
) -> None:
    comfyui.status, comfyui.body = status_code, body
    with pytest.raises(error, match=text):
        status.ask(comfyui.url)


def test_another_version(comfyui: Answers) -> None:
    comfyui.body = b'{"peers": []}'
    code, output = run("--url", comfyui.url)
    assert code == 1 and "not of this version" in output
