"""The OpenAPI 3.1 document, made of what each route says of itself (`operations.py`)."""

from __future__ import annotations

import inspect
import re
from http import HTTPStatus
from typing import Any

from flask import Flask
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from werkzeug.routing import Rule

from stun_server.operations import KEY_HEADER, Operation
from stun_server.schemas import ID_PATTERN, Refusal

VERSION = "1"
_REFERENCE = "#/components/schemas/{model}"
_SCHEME = "clusterKey"
_MADE = "stun-server-openapi"


def document(app: Flask) -> dict[str, Any]:
    """All routes of `app` that describe themselves. Made once, since anybody may ask for it."""
    if _MADE not in app.extensions:
        app.extensions[_MADE] = _document(app)
    made: dict[str, Any] = app.extensions[_MADE]
    return made


def _document(app: Flask) -> dict[str, Any]:
    described = [(rule, _operation_of(app, rule)) for rule in app.url_map.iter_rules()]
    operations = [(rule, each) for rule, each in described if each is not None]
    paths: dict[str, dict[str, Any]] = {}
    for rule, each in sorted(operations, key=lambda pair: pair[0].rule):
        path = re.sub(r"<([a-z_]+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _path_item(app, rule, each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ComfyUI Cluster rendezvous server",
            "version": VERSION,
            "description": "An HTTP registry where the instances of a cluster find each other.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas([each for _, each in operations]),
            "securitySchemes": {
                _SCHEME: {
                    "type": "apiKey",
                    "in": "header",
                    "name": KEY_HEADER,
                    "description": "The cluster's key, as in COMFY_CLUSTER_KEY",
                }
            },
        },
    }


def _operation_of(app: Flask, rule: Rule) -> Operation | None:
    found = getattr(app.view_functions[rule.endpoint], "operation", None)
    return found if isinstance(found, Operation) else None


def _path_item(app: Flask, rule: Rule, each: Operation) -> dict[str, Any]:
    view = app.view_functions[rule.endpoint]
    item: dict[str, Any] = {
        "operationId": rule.endpoint.replace(".", "_"),
        "summary": each.summary,
        "description": inspect.getdoc(view) or "",
        "parameters": _parameters(rule, each),
        "responses": {str(code): _response(code, told) for code, told in each.answers.items()},
    }
    refusals = {*each.refusals, 503}
    if each.needs_key:
        refusals |= {401, 429}
        item["security"] = [{_SCHEME: []}]
    if each.body is not None:
        refusals |= {400, 413}
        item["requestBody"] = {
            "required": True,
            "content": _json({"$ref": _REFERENCE.format(model=each.body.__name__)}),
        }
    for code in sorted(refusals - each.answers.keys()):
        item["responses"][str(code)] = _response(code, Refusal)
    return item


def _parameters(rule: Rule, each: Operation) -> list[dict[str, Any]]:
    in_path: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": ID_PATTERN},
        }
        for name in sorted(rule.arguments)
    ]
    in_query = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": description,
        }
        for name, (schema, description) in each.query.items()
    ]
    return in_path + in_query


def _response(code: int, told: type[BaseModel] | str) -> dict[str, Any]:
    if isinstance(told, str):
        return {"description": told}
    return {
        "description": HTTPStatus(code).phrase,
        "content": _json({"$ref": _REFERENCE.format(model=told.__name__)}),
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _schemas(operations: list[Operation]) -> dict[str, Any]:
    taken = {each.body for each in operations if each.body is not None}
    given = {
        told for each in operations for told in each.answers.values() if not isinstance(told, str)
    } | {Refusal}
    by_name = sorted(taken, key=_name), sorted(given, key=_name)
    _, definitions = models_json_schema(
        [(model, "validation") for model in by_name[0]]
        + [(model, "serialization") for model in by_name[1]],
        ref_template=_REFERENCE,
    )
    found: dict[str, Any] = definitions["$defs"]
    return found


def _name(model: type[BaseModel]) -> str:
    return model.__name__
