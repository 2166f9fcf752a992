"""How the tests ask a running server, and wait for what shall become true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.stun_server.servers import RunningServer

KEY = "a key of these tests, 32 letters".replace(" ", "-")
TIMEOUT = 30.0  # seconds in which a condition comes true
REQUEST_TIMEOUT = (5.0, 40.0)  # seconds


def until(condition: Callable[[], Any], what: str) -> None:
    """Waits until it holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"not within {TIMEOUT:g} s: {what}"
        time.sleep(0.02)


def ask(method: str, url: str, **options: Any) -> requests.Response:
    headers = {"X-Cluster-Key": KEY, **options.pop("headers", {})}
    return requests.request(method, url, headers=headers, timeout=REQUEST_TIMEOUT, **options)


def registration(cluster_id: str, instance_id: str) -> dict[str, Any]:
    return {
        "cluster_id": cluster_id,
        "instance_id": instance_id,
        "address": "10.0.0.1",
        "port": 9998,
        "role": "FOLLOWER",
    }


def register(server_url: str, cluster_id: str, instance_id: str) -> requests.Response:
    body = registration(cluster_id, instance_id)
    return ask("POST", f"{server_url}/register-instance", json=body)


def listed(server_url: str, cluster_id: str) -> list[str]:
    answer = ask("GET", f"{server_url}/instances/{cluster_id}")
    assert answer.status_code == 200, answer.text
    return [each["instance_id"] for each in answer.json()["instances"]]


def sample(exposition: str, name: str, **labels: str) -> float:
    return sum(
        each.value
        for family in text_string_to_metric_families(exposition)
        for each in family.samples
        if each.name == name and labels.items() <= each.labels.items()
    )


def waiting(server: RunningServer) -> float:
    """Requests that wait for a change; the workers tell it once a second."""
    return sample(requests.get(f"{server.url}/metrics", timeout=10).text, "stun_waiting_requests")
