"""The application factory: Flask with the server's routes, and JSON for every error.

Holds no state outside of the application it makes; reads no environment (`wsgi.py` does).
"""

from __future__ import annotations

from flask import Flask, Response, jsonify
from werkzeug.exceptions import HTTPException

from stun_server.routes import blueprint
from stun_server.settings import RegistrySettings

# The longest body that any route of the API can need, with room to spare.
LARGEST_BODY = 64 * 1024


def create_app(settings: RegistrySettings | None = None) -> Flask:
    """A fresh application; `settings` are the defaults when left out."""
    app = Flask("stun_server", static_folder=None)
    app.config["REGISTRY_SETTINGS"] = settings or RegistrySettings()
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    app.register_blueprint(blueprint)
    app.register_error_handler(HTTPException, _error_as_json)
    return app


def _error_as_json(error: HTTPException) -> tuple[Response, int]:
    body = {"status": "error", "error": error.description or error.name}
    return jsonify(body), error.code or 500
