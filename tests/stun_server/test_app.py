"""The routes, by Flask's own client."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask.testing import FlaskClient

from stun_server.app import LARGEST_BODY, create_app
from stun_server.operations import SERVICE
from stun_server.settings import RegistrySettings


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return create_app(RegistrySettings(store=f"sqlite:///{tmp_path}/registry.db")).test_client()


def test_health_needs_no_key(client: FlaskClient) -> None:
    response = client.get("/health")
    assert response.status_code == 200
    assert response.is_json
    assert response.get_json() == {"status": "healthy"}


def test_unknown_route_answers_json(client: FlaskClient) -> None:
    response = client.get("/nothing")
    assert response.status_code == 404
    assert response.get_json()["status"] == "error"


def test_wrong_method_answers_json(client: FlaskClient) -> None:
    response = client.post("/health", data=b"x" * (LARGEST_BODY + 1))
    assert response.status_code == 405
    assert "not allowed" in response.get_json()["error"]


def test_each_application_keeps_its_own_settings() -> None:
    first = create_app(RegistrySettings(port=1))
    second = create_app(RegistrySettings(port=2))
    assert first.extensions[SERVICE].settings.port == 1
    assert second.extensions[SERVICE].settings.port == 2


def test_wsgi_module_has_an_application() -> None:
    from stun_server.wsgi import app

    assert app.test_client().get("/health").status_code == 200
