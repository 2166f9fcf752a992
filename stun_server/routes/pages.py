"""The pages for a person with a browser: the clusters of a key, live; and the API to read.

They hold nothing secret: what a key opens, the page asks from the API itself. Their addresses are
relative, since behind a proxy the server may have a path of its own.
"""

from __future__ import annotations

from flask import Blueprint, Response, current_app, make_response, render_template, request

from stun_server.openapi import document
from stun_server.reference import refusal_members, sections

blueprint = Blueprint("pages", __name__)

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)


@blueprint.get("/")
def status() -> Response:
    """The status page."""
    return _page("status.html")


@blueprint.get("/docs")
def docs() -> Response:
    """The OpenAPI document, to read."""
    told = document(current_app)
    return _page(
        "docs.html",
        document=told,
        sections=sections(told),
        refusal=refusal_members(told),
        server=request.url_root.rstrip("/"),
    )


def _page(template: str, **values: object) -> Response:
    answer = make_response(render_template(template, **values))
    answer.headers["Content-Security-Policy"] = _POLICY
    answer.headers["Referrer-Policy"] = "no-referrer"
    answer.headers["Cache-Control"] = "no-cache"
    return answer


@blueprint.after_app_request
def _say_what_it_is(answer: Response) -> Response:
    """No browser shall guess a type, of the pages or of what they load."""
    if request.blueprint == blueprint.name or request.endpoint == "static":
        answer.headers["X-Content-Type-Options"] = "nosniff"
    return answer
