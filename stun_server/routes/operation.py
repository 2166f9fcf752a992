"""For those who run the server: whether it lives, whether it can work, its metrics, its API."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

from stun_server.metrics import CONTENT_TYPE
from stun_server.openapi import document
from stun_server.operations import json_answer, operation, service
from stun_server.schemas import Status
from stun_server.store import StoreUnavailable

blueprint = Blueprint("operation", __name__)


@blueprint.get("/livez")
@operation("The process lives", answers={200: Status}, needs_key=False)
def livez() -> Response:
    """Restart it where this does not answer."""
    return json_answer({"status": "alive"})


@blueprint.get("/readyz")
@operation("The server can work", answers={200: Status, 503: Status}, needs_key=False)
def readyz() -> Response:
    """The store can be written, the STUN responder lives, and the process is not about to end."""
    reason = _why_not_ready()
    return json_answer({"status": reason or "ready"}, 503 if reason else 200)


@blueprint.get("/metrics")
@operation(
    "Metrics for Prometheus",
    answers={200: "Text format, of all workers together"},
    needs_key=False,
)
def metrics() -> Response:
    """No cluster's name is in it."""
    return Response(service().metrics.exposition(), content_type=CONTENT_TYPE)


@blueprint.get("/openapi.json")
@operation("This document", answers={200: "OpenAPI 3.1"}, needs_key=False)
def openapi() -> Response:
    """Of the routes as they are."""
    return json_answer(document(current_app))


def _why_not_ready() -> str:
    served = service()
    if served.is_draining:
        return "stopping"
    try:
        served.check_store()
    except StoreUnavailable:
        return "the store cannot be written"
    if served.settings.udp_port is not None and served.stun_port is None:
        return "the STUN responder does not run"
    return ""
