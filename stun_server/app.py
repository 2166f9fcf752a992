"""The application factory: Flask with the server's routes, and one form of JSON for every error.

Holds no state outside of the application it makes; reads no environment (`wsgi.py` does).
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import time
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import structlog
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from stun_server.logs import logger
from stun_server.operations import SERVICE, json_answer
from stun_server.operations import service as current_service
from stun_server.problems import (
    InstanceHeld,
    InvalidRequest,
    KeyRefused,
    Problem,
    TooManyFailures,
)
from stun_server.routes import operation, pages, registration, v1
from stun_server.schemas import moment
from stun_server.service import Service
from stun_server.settings import RegistrySettings
from stun_server.store import StoreUnavailable, open_store

# The longest body that any route of the API can need, with room to spare.
LARGEST_BODY = 64 * 1024
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Those that come often: logged at DEBUG when all is well.
_OFTEN = ("/heartbeat", "/instances", "/health", "/livez", "/readyz", "/metrics", "/v1/clusters")


def create_app(settings: RegistrySettings | None = None, service: Service | None = None) -> Flask:
    """A fresh application; `settings` are the defaults when left out.

    `service` is made of the settings when left out; whoever starts it closes it.
    """
    if service is None:
        settings = settings or RegistrySettings()
        service = Service(settings, open_store(settings.store))
    app = Flask("stun_server", static_folder="static", static_url_path="/static")
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    app.extensions[SERVICE] = service
    for module in (registration, v1, operation, pages):
        app.register_blueprint(module.blueprint)
    app.before_request(_begin)
    app.after_request(_end)
    app.register_error_handler(Problem, _problem)
    app.register_error_handler(StoreUnavailable, _store_unavailable)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _bug)
    proxies = service.settings.trusted_proxies
    if proxies:
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=proxies, x_proto=proxies
        )
    return app


def _begin() -> None:
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
    g.began_at = time.perf_counter()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _end(answer: Response) -> Response:
    served = current_service()
    seconds = time.perf_counter() - g.began_at
    route = request.url_rule.rule if request.url_rule else "none"
    method = request.method if request.method in _METHODS else "other"
    served.metrics.requests.labels(route, method, answer.status_code).inc()
    served.metrics.seconds.labels(route).observe(seconds)
    answer.headers["X-Request-ID"] = g.request_id
    is_routine = answer.status_code < 400 and (
        request.path.startswith(_OFTEN) and request.method not in ("PUT", "DELETE")
    )
    level = logging.DEBUG if is_routine else logging.INFO
    if logger.isEnabledFor(level):
        logger.log(
            level,
            "request",
            extra={
                "method": request.method,
                "path": request.path,
                "status": answer.status_code,
                "source": request.remote_addr,
                "ms": round(seconds * 1000, 1),
            },
        )
    structlog.contextvars.unbind_contextvars("request_id")
    return answer


def _refusal(
    status: int, code: str, text: str, more: Mapping[str, Any] = MappingProxyType({})
) -> Response:
    body = {"status": "error", "code": code, "error": text, **more}
    body["request_id"] = g.get("request_id", "")
    return json_answer(body, status)


def _problem(problem: Problem) -> Response:
    if isinstance(problem, KeyRefused | TooManyFailures):
        current_service().metrics.refused_keys.inc()
    more: dict[str, Any] = {}
    if isinstance(problem, InvalidRequest) and problem.faults:
        more["faults"] = problem.faults
    if isinstance(problem, InstanceHeld):
        last_ping = moment(problem.last_ping_at)
        more["holder"] = dict(address=problem.address, port=problem.port, last_ping=last_ping)
    answer = _refusal(problem.status, problem.code, str(problem), more)
    if problem.retry_after is not None:
        answer.headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after)))
    return answer


def _store_unavailable(error: StoreUnavailable) -> Response:
    logger.error("! %s", error)  # the path in it is the operator's business
    answer = _refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "store_unavailable",
        "The server cannot reach its store now: try again. The operator finds the reason in the "
        "server's log",
    )
    answer.headers["Retry-After"] = "1"
    return answer


def _http_error(error: HTTPException) -> Response:
    code = (error.name or "error").lower().replace(" ", "_")
    answer = _refusal(error.code or 500, code, error.description or error.name)
    for name, value in error.get_headers():
        if name in ("Allow", "Location"):
            answer.headers[name] = value
    return answer


def _bug(error: Exception) -> Response:
    logger.exception("! a request failed")
    return _refusal(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal_error",
        "The server failed at this request; its log says why, under this request_id",
    )
