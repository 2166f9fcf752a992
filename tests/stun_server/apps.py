"""The application in the test's own process, and what tests send it.

`Site.client()` is Flask's; several sites with one store are as many processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from stun_server.app import create_app
from stun_server.service import Service
from stun_server.settings import RegistrySettings
from stun_server.store import Store, open_store

KEY, OTHER_KEY = (f"{name}-{'k' * 32}" for name in ("right", "other"))


class Site:
    """One process of the server, without its threads."""

    def __init__(self, settings: RegistrySettings, store: Store | None = None) -> None:
        self.service = Service(settings, store or open_store(settings.store))
        self.app: Flask = create_app(service=self.service)

    def client(self, key: str = KEY, **headers: str) -> FlaskClient:
        """Sends `key` and these headers with each request; `_` in their names is `-`."""
        client = self.app.test_client()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            given["X-Cluster-Key"] = key
        client.environ_base |= {
            f"HTTP_{name.upper().replace('-', '_')}": value for name, value in given.items()
        }
        return client


@contextlib.contextmanager
def running_site(**settings: Any) -> Iterator[Site]:
    """A site for as long as the block lasts; the settings are fields of RegistrySettings."""
    site = Site(RegistrySettings(**{"udp_port": None} | settings))
    try:
        yield site
    finally:
        site.service.close()


def old_body(cluster_id: str = "a", instance_id: str | int = "0", **given: Any) -> dict[str, Any]:
    """Of POST /register-instance."""
    return {
        "cluster_id": cluster_id,
        "instance_id": instance_id,
        "address": "10.0.0.1",
        "port": 8189,
        "role": "LEADER",
    } | given


def new_body(**given: Any) -> dict[str, Any]:
    """Of PUT /v1/clusters/.../instances/..."""
    return {"boot_id": "run-1", "address": "10.0.0.1", "port": 8189, "role": "LEADER"} | given


def lease_path(cluster_id: str = "a", instance_id: str = "0") -> str:
    return f"/v1/clusters/{cluster_id}/instances/{instance_id}"


def refusal(answer: TestResponse, status: int, code: str) -> dict[str, Any]:
    """An error's JSON, in the one form that all have."""
    assert (answer.status_code, answer.mimetype) == (status, "application/json"), answer.text
    told: dict[str, Any] = answer.get_json()
    assert (told["status"], told["code"]) == ("error", code), told
    assert told.keys() <= {"status", "code", "error", "faults", "holder", "request_id"}
    assert told["error"]
    assert told["request_id"] == answer.headers["X-Request-ID"]
    return told
