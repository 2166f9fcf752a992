"""What a route takes and answers, said beside it: checked by the route, told by the document."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from flask import Response, current_app, g, request
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from stun_server.problems import InvalidRequest, TooSlow
from stun_server.registry import Asker
from stun_server.schemas import LARGEST_INDEX, LARGEST_WAIT
from stun_server.service import Service
from stun_server.settings import CLUSTER_ID, CLUSTER_ID_FORM

SERVICE = "stun_server"  # key of `app.extensions`
BODY_TIMEOUT = 5.0  # seconds in which all of it must have come
KEY_HEADER = "X-Cluster-Key"
_WHOLE = re.compile(r"[0-9]{1,16}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # JSON's; float() takes more

_BODY_ERRORS: tuple[type[Exception], ...] = (TimeoutError, ClientDisconnected)
with contextlib.suppress(ImportError):  # it needs a Unix; this module does not
    from gunicorn.http.errors import ParseException

    _BODY_ERRORS += (ParseException,)

ModelT = TypeVar("ModelT", bound=BaseModel)
RouteT = TypeVar("RouteT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Operation:
    """One route, for the OpenAPI document."""

    summary: str
    answers: dict[int, type[BaseModel] | str]
    """By status: a model, or the text of an answer without JSON."""
    body: type[BaseModel] | None
    needs_key: bool
    query: dict[str, tuple[dict[str, Any], str]]
    """By name: JSON Schema and description."""
    refusals: tuple[int, ...]


def operation(
    summary: str,
    *,
    answers: dict[int, type[BaseModel] | str],
    body: type[BaseModel] | None = None,
    needs_key: bool = True,
    query: dict[str, tuple[dict[str, Any], str]] | None = None,
    refusals: tuple[int, ...] = (),
) -> Callable[[RouteT], RouteT]:
    """Describes the route below it."""

    def describe(route: RouteT) -> RouteT:
        route.operation = Operation(  # type: ignore[attr-defined]
            summary, answers, body, needs_key, query or {}, refusals
        )
        return route

    return describe


def service() -> Service:
    """That of the application which answers this request."""
    found: Service = current_app.extensions[SERVICE]
    return found


def asker() -> Asker:
    """Who sends this request."""
    return Asker(request.remote_addr or "", request_id=g.request_id)


def key() -> str:
    """The cluster key of this request; empty without one."""
    return request.headers.get(KEY_HEADER, "")


def admit(cluster_id: str) -> Asker:
    """Whoever sends this request, if the key opens the cluster. KeyRefused, TooManyFailures.

    To be asked again when the store was read: the id may have become another's in between.
    """
    return service().gate.admit(cluster_id, key(), asker())


def json_answer(body: dict[str, Any], status: int = 200, etag: str = "") -> Response:
    """`body` as compact JSON, its members in their order, and a line's end."""
    text = orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)
    answer = Response(text, status, mimetype="application/json")
    answer.headers["Cache-Control"] = "no-store"
    if etag:
        answer.headers["ETag"] = etag
        answer.headers["Cache-Control"] = "no-cache"
    return answer


def _body() -> bytes:
    """The request's body. TooSlow: it does not come. Overloaded: too many are on their way.

    InvalidRequest: it is not what its headers say.
    """
    with service().bodies.taken_by(asker().source), _socket_timeout(BODY_TIMEOUT):
        try:
            return request.get_data(cache=True)
        except _BODY_ERRORS as error:
            cause = error.__context__ if isinstance(error, ClientDisconnected) else error
            if isinstance(cause, TimeoutError):  # Werkzeug makes the other one of it
                raise TooSlow from error
            raise InvalidRequest(f"The body is not what its headers say: {cause}") from error


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """For the whole block at a `ClientSocket`, for each piece at another one."""
    sock = request.environ.get("gunicorn.socket")
    if sock is None:
        yield
        return
    before = sock.gettimeout()
    sock.settimeout(seconds)
    try:
        yield
    finally:
        sock.settimeout(before)


def json_body() -> Any:
    """The request's JSON, whatever its content type says. InvalidRequest: it is none."""
    body = _body()
    if request.content_length is None and len(body) == request.max_content_length:
        raise RequestEntityTooLarge  # Werkzeug cuts a body of unknown length there, and goes on
    try:
        return json.loads(body or b"null", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no value of it")


def read_body(model: type[ModelT]) -> ModelT:
    """The request's JSON as `model`. InvalidRequest: it does not fit; the text says where."""
    try:
        return model.model_validate(json_body())
    except ValidationError as error:
        faults = [
            {"where": ".".join(map(str, fault["loc"])) or "body", "what": fault["msg"]}
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        told = "; ".join(f"{fault['where']}: {fault['what']}" for fault in faults[:3])
        raise InvalidRequest(f"Invalid body: {told}", faults) from None


def check_id(name: str, value: str) -> str:
    """`value` of the path's `name`. InvalidRequest: it cannot be one."""
    if not CLUSTER_ID.fullmatch(value):
        raise InvalidRequest(
            f"Invalid {name} in the path: expected {CLUSTER_ID_FORM}",
            [{"where": name, "what": f"expected {CLUSTER_ID_FORM}"}],
        )
    return value


def query_number(name: str, *, highest: float, default: float = 0.0) -> float:
    """A number of 0 or more of the query; one above `highest` counts as that. InvalidRequest."""
    texts = request.args.getlist(name)
    if not texts:
        return default
    number = float(texts[0]) if len(texts) == 1 and _NUMBER.fullmatch(texts[0]) else math.nan
    if not 0 <= number < math.inf:
        expected = "expected one number of 0 or more"
        raise InvalidRequest(f"Invalid {name}: {expected}", [{"where": name, "what": expected}])
    return min(number, highest)


def whole_number(lowest: int) -> dict[str, Any]:
    """JSON Schema of what `query_whole` takes."""
    return {"type": "integer", "minimum": lowest, "maximum": LARGEST_INDEX}


def query_whole(name: str, *, lowest: int = 0, highest: int) -> int | None:
    """A whole number of the query; one above `highest` counts as that. None: it is not there.

    InvalidRequest: it is none, below `lowest`, or above what JSON's numbers hold exactly.
    """
    texts = request.args.getlist(name)
    if not texts:
        return None
    number = int(texts[0]) if len(texts) == 1 and _WHOLE.fullmatch(texts[0]) else -1
    if not lowest <= number <= LARGEST_INDEX:
        expected = f"expected one whole number from {lowest} to {LARGEST_INDEX}"
        raise InvalidRequest(f"Invalid {name}: {expected}", [{"where": name, "what": expected}])
    return min(number, highest)


WAIT = (
    {"type": "number", "minimum": 0, "default": 0},
    f"Seconds to wait for a change, at most {LARGEST_WAIT:g}; an answer may come without one",
)
