"""The pages by Flask's own client: their headers, and that the reference is whole and true."""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from stun_server.app import create_app
from stun_server.openapi import document
from stun_server.reference import Member, Route, sections
from stun_server.settings import RegistrySettings

KEY = "the-key-of-the-render-farm-0123456789"
SERVER = Path(__file__).resolve().parents[2] / "stun_server"
FILES = sorted((SERVER / "static").iterdir()) + sorted((SERVER / "templates").iterdir())
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
}
_URL = re.compile(r"""\b(?:https?:)?//[^\s"'<>]+""")
_COMMENTS = re.compile(r"/\*.*?\*/|^\s*//.*?$|\s//\s.*?$", re.DOTALL | re.MULTILINE)
_SVG = "http://www.w3.org/2000/svg"  # a name, which nobody opens


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return create_app(RegistrySettings(store=f"sqlite:///{tmp_path}/registry.db", udp_port=None))


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_lets_nothing_of_others_in(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.content_type == "text/html; charset=utf-8"
    parts = answer.headers["Content-Security-Policy"].split("; ")
    assert dict(part.split(" ", 1) for part in parts) == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert "Set-Cookie" not in answer.headers
    assert client.head(path).data == b""


def test_files_of_the_pages_are_there_with_their_types(client: FlaskClient) -> None:
    text = client.get("/").text + client.get("/docs").text
    named = set(re.findall(r'(?:href|src)="(static/[^"]+)"', text))
    assert {Path(each).suffix for each in named} == {".js", ".css", ".svg"}
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for path in (SERVER / "static").iterdir():
        answer = client.get(f"/static/{path.name}")
        assert answer.status_code == 200
        assert answer.mimetype == types[path.suffix]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-cache"  # with an ETag: new after an upgrade
        answer.close()
    assert named <= {f"static/{path.name}" for path in (SERVER / "static").iterdir()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_pages_need_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(_URL.findall(_COMMENTS.sub("", text))) <= {_SVG}
    # Behind a proxy the server may have a path of its own.
    assert not re.search(r"""(href|src|action)\s*=\s*["']/|url_for|from\s+["']/""", text)
    # The policy forbids these, so they would do nothing; and nothing may become markup.
    assert not re.search(r"\son[a-z]+\s*=\s*[\"']|\sstyle\s*=|<script>|javascript:", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)


def test_the_field_of_the_key_is_never_sent_by_the_browser_itself(client: FlaskClient) -> None:
    field = re.search(r"<input[^>]*>", client.get("/").text)
    assert field is not None
    assert 'type="password"' in field[0]
    assert "name=" not in field[0]


def test_errors_stay_json(client: FlaskClient) -> None:
    for answer in (client.get("/static/nothing.js"), client.get("/docs/"), client.post("/")):
        assert answer.status_code in (404, 405)
        assert answer.get_json()["status"] == "error"


def test_pages_are_no_part_of_the_api(app: Flask) -> None:
    assert not {"/", "/docs", "/static/{filename}"} & document(app)["paths"].keys()


def test_every_documented_route_is_on_the_page(app: Flask, client: FlaskClient) -> None:
    text = html.unescape(client.get("/docs").text)
    told = document(app)
    shown = {(route.method, route.path) for each in sections(told) for route in each.routes}
    assert shown == {
        (method.upper(), path) for path, methods in told["paths"].items() for method in methods
    }
    for path, methods in told["paths"].items():
        assert f'<code class="path">{path}</code>' in text
        for operation in methods.values():
            assert f'id="{operation["operationId"]}"' in text
            assert operation["summary"] in text
            for status in operation["responses"]:
                assert f'<span class="status status-{status[0]}">{status}</span>' in text
    for schema in told["components"]["schemas"].values():
        for name in schema.get("properties", {}):
            assert f"<code>{name}</code>" in text
    assert 'href="openapi.json"' in text
    assert "$ref" not in text
    assert "`" not in text


def test_members_of_members_are_below_them(app: Flask) -> None:
    answer = route_of(app, "v1_register").answers[0]
    shown = [(each.name, each.depth) for each in answer.members]
    assert ("cluster", 0) in shown
    assert ("instances", 1) in shown
    assert ("candidates", 2) in shown
    assert ("priority", 3) in shown
    members = {each.name: each for each in answer.members}
    assert members["candidates"].type == "list of objects"
    assert members["state"].type == '"live" or "late"'
    assert members["registered_at"].type == "string (date-time)"
    assert members["stun"].type == "object or null"


def test_what_a_value_must_keep_is_told(app: Flask) -> None:
    body = {each.name: each for each in route_of(app, "registration_register_instance").body}
    assert body["port"].limits == ("at least 1", "at most 65535")
    assert body["instance_id"].type == "string or integer"
    assert (
        body["address"].description
        == "Host name or IP address, without port; no multicast, and not 0.0.0.0 or ::"
    )
    wait = route_of(app, "v1_cluster").parameters[1]
    assert wait == Member("wait", 0, "number, in query", False, wait.description, wait.limits)
    assert "0 when left out" in wait.limits


@pytest.mark.parametrize("subject", ["registration", "v1", "operation"])
def test_the_examples_work(app: Flask, client: FlaskClient, subject: str) -> None:
    routes = next(each.routes for each in sections(document(app)) if each.anchor == subject)
    page = html.unescape(client.get("/docs").text)
    for route in sorted(routes, key=_order):
        assert route.example in page
        answer = run(client, route.example)
        assert answer.status_code == 200, (route.example, answer.text)


def test_a_host_header_never_becomes_markup(client: FlaskClient) -> None:
    answer = client.get("/docs", headers={"Host": "a.example<script>alert(1)</script>"})
    assert "<script" not in answer.text


def route_of(app: Flask, operation_id: str) -> Route:
    routes = [route for each in sections(document(app)) for route in each.routes]
    return next(route for route in routes if route.anchor == operation_id)


def _order(route: Route) -> tuple[bool, bool]:
    """Registrations first, goodbyes last."""
    return route.method == "DELETE", "address" not in route.example


def run(client: FlaskClient, example: str) -> TestResponse:
    """Does what a shell and curl would."""
    words = shlex.split(example.replace("\\\n", " "))
    assert words.pop(0) == "curl"
    url = words.pop()
    assert url.startswith("$SERVER/")
    options: dict[str, Any] = {"method": "GET", "headers": {}}
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "-H":
            name, text = value.split(": ")
            options["headers"][name] = text.replace("$KEY", KEY)
        else:
            options[{"-X": "method", "-d": "data"}[option]] = value
    return client.open(url.removeprefix("$SERVER"), **options)
