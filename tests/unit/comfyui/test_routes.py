"""The route of "Queue Cluster", and hooks into ComfyUI's start. aiohttp is a stand-in."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from comfy_cluster.cluster.info import ClusterInfo
from comfy_cluster.errors import ConfigError, DiscoveryError, WorkflowError
from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.work import Work
from tests.unit.comfyui.fake_modules import FakeComfyUI

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one
PROMPT = {"1": {"class_type": "LoadImage", "inputs": {}}}


@dataclass
class Request:
    """aiohttp's request, as far as it is looked at."""

    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    async def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Routes:
    """aiohttp's table of routes."""

    found: dict[str, Any] = field(default_factory=dict)

    def post(self, path: str) -> Any:
        def add(fn: Any) -> Any:
            self.found[path] = fn
            return fn

        return add

    get = post


@dataclass
class FakeWork:
    """What the route asks."""

    error: Exception | None = None
    is_late: bool = False
    asked: list[Any] = field(default_factory=list)

    def queue_on_all(self, prompt: Any, extra_data: Any, *, outputs: list[str]) -> Any:
        self.asked.append((prompt, extra_data, outputs))
        if self.error is not None and not self.is_late:
            raise self.error
        queued: Handle[None] = (
            Handle.completed(None) if self.error is None else Handle.failed(self.error)
        )
        return "job", "id", queued


def post(comfyui: FakeComfyUI, request: Request, get_work: Any) -> Any:
    """The route's answer."""
    from comfy_cluster.comfyui.routes import QUEUE_PATH, add_routes

    comfyui.server.routes = Routes()
    add_routes(comfyui.server, get_work)
    return asyncio.run(comfyui.server.routes.found[QUEUE_PATH](request))


def ask(comfyui: FakeComfyUI, work: FakeWork, **more: Any) -> Any:
    body = {"prompt": PROMPT, **more}
    return post(comfyui, Request(json.dumps(body)), lambda: work)


def test_a_prompt_is_queued_on_all(comfyui: FakeComfyUI) -> None:
    work = FakeWork()
    answer = ask(comfyui, work, client_id="page", extra_data={"extra_pnginfo": 1})
    assert answer.status == 200
    assert answer.body == {"job_id": "job", "prompt_id": "id", "number": 7, "node_errors": {}}
    assert work.asked == [(PROMPT, {"extra_pnginfo": 1, "client_id": "page"}, ["1"])]


def test_what_comfyui_finds_invalid_goes_no_further(comfyui: FakeComfyUI) -> None:
    async def refuse(*_: Any) -> Any:
        return False, {"message": "Prompt has no outputs"}, [], {"1": {"errors": []}}

    comfyui.validate = refuse
    work = FakeWork()
    answer = ask(comfyui, work)
    assert answer.status == 400
    assert answer.body["error"]["message"] == "Prompt has no outputs"
    assert answer.body["node_errors"] == {"1": {"errors": []}}
    assert work.asked == []


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (DiscoveryError("2 of 4 are here"), 503, "not_ready"),
        (WorkflowError("instance 2 lacks node class Blur"), 400, "refused"),
        (ConfigError("INSTANCE_INDEX is 9"), 503, "cluster"),
    ],
)
@pytest.mark.parametrize("is_late", [False, True])
def test_what_the_cluster_refuses(
    comfyui: FakeComfyUI, error: Exception, status: int, kind: str, is_late: bool
) -> None:
    answer = ask(comfyui, FakeWork(error, is_late))
    assert (answer.status, answer.body["error"]["type"]) == (status, kind)
    assert answer.body["error"]["message"] == str(error)
    assert answer.body["node_errors"] == {}


def test_settings_that_are_wrong_are_told(comfyui: FakeComfyUI) -> None:
    def get_work() -> Any:
        raise ConfigError("Missing required environment variable")

    answer = post(comfyui, Request(json.dumps({"prompt": PROMPT})), get_work)
    assert (answer.status, answer.body["error"]["type"]) == (503, "cluster")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "5",
        "{}",
        '{"prompt": []}',
        '{"prompt": null}',
        '{"prompt": {"1": 5}}',
        '{"prompt": {"1": {"inputs": {}}}}',
        '{"prompt": {"1": {"class_type": "Blur"}}}',
        '{"prompt": {"1": {"class_type": "Blur", "inputs": []}}}',
        '{"prompt": {}, "extra_data": 5}',
    ],
)
def test_bodies_without_a_prompt(comfyui: FakeComfyUI, body: str) -> None:
    work = FakeWork()
    answer = post(comfyui, Request(body), lambda: work)
    assert (answer.status, answer.body["error"]["type"]) == (400, "no_prompt")
    assert work.asked == []


@pytest.mark.parametrize(
    ("headers", "is_foreign"),
    [
        ({}, False),
        ({"Host": "127.0.0.1:8188"}, False),
        ({"Host": "127.0.0.1:8188", "Origin": "http://127.0.0.1:8188"}, False),
        ({"Host": "Leader:8188", "Origin": "https://leader:8188"}, False),
        ({"Host": "127.0.0.1:8188", "Origin": "http://evil.example"}, True),
        ({"Host": "127.0.0.1:8188", "Origin": "http://127.0.0.1:9999"}, True),
        ({"Host": "127.0.0.1:8188", "Origin": "null"}, True),
        ({"Host": "a", "Origin": "http://a", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Host": "a", "Origin": "http://a", "Sec-Fetch-Site": "Cross-Site"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, True),
    ],
)
def test_pages_of_other_sites(
    comfyui: FakeComfyUI, headers: Mapping[str, str], is_foreign: bool
) -> None:
    work = FakeWork()
    request = Request(json.dumps({"prompt": PROMPT}), headers)
    answer = post(comfyui, request, lambda: work)
    assert answer.status == (403 if is_foreign else 200)
    assert bool(work.asked) is not is_foreign


def ask_status(
    comfyui: FakeComfyUI, get_work: Any, headers: Mapping[str, str] | None = None
) -> Any:
    from comfy_cluster.cluster.info import STATUS_PATH
    from comfy_cluster.comfyui.routes import add_routes

    comfyui.server.routes = Routes()
    add_routes(comfyui.server, get_work)
    return asyncio.run(comfyui.server.routes.found[STATUS_PATH](Request("", headers or {})))


def test_the_status_of_a_cluster_of_one(comfyui: FakeComfyUI) -> None:
    host: Any = None
    answer = ask_status(comfyui, lambda: Work(host))
    info = ClusterInfo.parse(answer.body)
    assert answer.status == 200 and info.connected_count == info.instance_count == 1
    assert info.text().splitlines()[0] == "Instance 0 of 1 (LEADER), IDLE"


def test_a_status_that_cannot_be_told(comfyui: FakeComfyUI) -> None:
    def get_work() -> Any:
        raise ConfigError("Missing required environment variable")

    answer = ask_status(comfyui, get_work)
    assert answer.status == 503
    assert "Missing required" in answer.body["error"]["message"]
    foreign = {"Host": "a", "Origin": "http://evil.example"}
    assert ask_status(comfyui, get_work, foreign).status == 403


def test_the_server_and_its_start(comfyui: FakeComfyUI) -> None:
    from comfy_cluster.comfyui.loading import call_at_start, server_of_comfyui

    server = server_of_comfyui()
    assert server is comfyui.server
    server.app = SimpleNamespace(on_startup=[])
    threads: list[str] = []
    is_called = threading.Event()

    def start() -> None:
        threads.append(threading.current_thread().name)
        is_called.set()

    call_at_start(server, start)
    assert not is_called.is_set()
    asyncio.run(server.app.on_startup[0](server.app))
    assert is_called.wait(WAIT)
    assert threads == ["comfy-cluster-start"]
