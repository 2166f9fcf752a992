"""The HTTP routes. So far: health, which needs no key."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

blueprint = Blueprint("registry", __name__)


@blueprint.get("/health")
def health() -> Response:
    """For load balancers and container probes: the process answers."""
    return jsonify(status="healthy")
