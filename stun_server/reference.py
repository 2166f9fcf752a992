"""The OpenAPI document as the reference page shows it: nothing left to look up elsewhere.

Knows no HTML and no routes: what is not in the document is not on the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]

_WITHOUT_KEY = "operation"
# By the first word of an operation's id; others come last, under that word.
_TITLES = {
    "registration": "Instances, the plain API",
    "v1": "Instances, version 1",
    _WITHOUT_KEY: "For those who run the server",
}
_REFUSAL = "Refusal"
# What a name stands for in the examples; other members have a value of their type.
_EXAMPLES: dict[str, Any] = {
    "cluster_id": "render-farm",
    "instance_id": "0",
    "boot_id": "run-1",
    "address": "192.0.2.10",
    "port": 9998,
    "role": "LEADER",
}
_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "maxLength": "at most {} characters",
    "maxItems": "at most {} of them",
    "pattern": "fits {}",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One line of a table: a member of a body or an answer, or a parameter."""

    name: str
    depth: int
    """Members of members are below the line that holds them."""
    type: str
    is_required: bool
    description: str
    limits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    status: str
    description: str
    members: tuple[Member, ...] = ()
    """Empty for refusals, which are all alike."""


@dataclass(frozen=True, slots=True)
class Route:
    anchor: str
    method: str
    path: str
    summary: str
    description: str
    needs_key: bool
    parameters: tuple[Member, ...]
    body: tuple[Member, ...]
    is_body_required: bool
    answers: tuple[Answer, ...]
    refusals: tuple[Answer, ...]
    example: str
    """A command for a shell that has SERVER and KEY set."""


@dataclass(frozen=True, slots=True)
class Section:
    anchor: str
    title: str
    routes: tuple[Route, ...]


def sections(document: Schema) -> list[Section]:
    """All routes of an OpenAPI document, by subject."""
    found: dict[str, list[Route]] = {subject: [] for subject in _TITLES}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            subject = _subject(operation)
            route = _Reader(document).route(path, method.upper(), operation)
            found.setdefault(subject, []).append(route)
    return [
        Section(subject, _TITLES.get(subject, subject), tuple(routes))
        for subject, routes in found.items()
        if routes
    ]


def _subject(operation: Schema) -> str:
    first: str = operation["operationId"].partition("_")[0]
    return first if operation.get("security") else _WITHOUT_KEY


def refusal_members(document: Schema) -> tuple[Member, ...]:
    """Of the answer that all refusals have."""
    reader = _Reader(document)
    return tuple(reader.members(document["components"]["schemas"][_REFUSAL]))


class _Reader:
    def __init__(self, document: Schema) -> None:
        self._document = document

    def route(self, path: str, method: str, operation: Schema) -> Route:
        body = _json_of(operation.get("requestBody", {}))
        answers, refusals = self._answers(operation["responses"])
        needs_key = bool(operation.get("security"))
        return Route(
            anchor=operation["operationId"],
            method=method,
            path=path,
            summary=operation["summary"],
            description=operation.get("description", ""),
            needs_key=needs_key,
            parameters=tuple(self._parameter(each) for each in operation["parameters"]),
            body=tuple(self.members(body)) if body else (),
            is_body_required=operation.get("requestBody", {}).get("required", False),
            answers=answers,
            refusals=refusals,
            example=self._example(path, method, needs_key, body),
        )

    def _answers(self, responses: Schema) -> tuple[tuple[Answer, ...], tuple[Answer, ...]]:
        answers, refusals = [], []
        for status, response in responses.items():
            schema = _json_of(response)
            if schema.get("$ref", "").endswith(f"/{_REFUSAL}"):
                refusals.append(Answer(status, response["description"]))
            else:
                members = tuple(self.members(schema)) if schema else ()
                answers.append(Answer(status, response["description"], members))
        return tuple(answers), tuple(refusals)

    def _parameter(self, parameter: Schema) -> Member:
        schema = self._resolved(parameter["schema"])
        return Member(
            parameter["name"],
            0,
            f"{self._type(schema)}, in {parameter['in']}",
            parameter["required"],
            parameter.get("description", ""),
            _limits(schema),
        )

    def members(self, schema: Schema, depth: int = 0) -> Iterator[Member]:
        """Those of an object, each followed by its own."""
        schema = self._resolved(schema)
        required = schema.get("required", ())
        for name, given in schema.get("properties", {}).items():
            member = self._resolved(given)
            description = given.get("description") or member.get("description", "")
            yield Member(
                name,
                depth,
                self._type(member),
                name in required,
                description,
                _limits(member),
            )
            yield from self.members(self._innermost(member), depth + 1)

    def _innermost(self, schema: Schema) -> Schema:
        """The object that a list of objects, or an object or nothing, consists of."""
        if "items" in schema:
            return self._innermost(self._resolved(schema["items"]))
        for choice in schema.get("anyOf", ()):
            found = self._resolved(choice)
            if "properties" in found:
                return found
        return schema

    def _type(self, schema: Schema) -> str:
        schema = self._resolved(schema)
        if "const" in schema:
            return json.dumps(schema["const"])
        if "enum" in schema:
            return " or ".join(map(json.dumps, schema["enum"]))
        if "anyOf" in schema:
            return " or ".join(dict.fromkeys(self._type(each) for each in schema["anyOf"]))
        if schema.get("type") == "array":
            return f"list of {self._type(schema['items'])}s"
        form = schema.get("format")
        name = str(schema.get("type", "anything"))
        return f"{name} ({form})" if form else name

    def _resolved(self, schema: Schema) -> Schema:
        reference = schema.get("$ref")
        if reference is None:
            return schema
        found: Schema = self._document["components"]["schemas"][reference.rpartition("/")[2]]
        return self._resolved(found)

    def _example(self, path: str, method: str, needs_key: bool, body: Schema) -> str:
        parts = ["curl"]
        if method != "GET":
            parts.append(f"-X {method}")
        if needs_key:
            parts.append('-H "X-Cluster-Key: $KEY"')
        if body:
            parts.append('-H "Content-Type: application/json"')
            parts.append(f"-d '{json.dumps(self._value(body))}'")
        parts.append(f'"$SERVER{path.format_map(_EXAMPLES)}"')
        return " \\\n  ".join(_lines(parts))

    def _value(self, schema: Schema) -> dict[str, Any]:
        """Its members that are required, or all where none is."""
        schema = self._resolved(schema)
        names = schema.get("required") or schema.get("properties", {})
        return {name: _EXAMPLES.get(name, "") for name in names}


def _lines(parts: list[str]) -> Iterator[str]:
    """The short ones together on the first line."""
    if len(" ".join(parts)) <= 88:
        yield " ".join(parts)
        return
    method = parts[:2] if parts[1].startswith("-X") else parts[:1]
    yield " ".join(method)
    yield from parts[len(method) :]


def _json_of(holder: Schema) -> Schema:
    """The schema of a body or an answer; empty where that is no JSON."""
    found: Schema = holder.get("content", {}).get("application/json", {}).get("schema", {})
    return found


def _limits(schema: Schema) -> tuple[str, ...]:
    """What a value must keep, in words."""
    choices = [schema, *schema.get("anyOf", ())]
    limits = [
        text.format(choice[name])
        for choice in choices
        for name, text in _LIMITS.items()
        if name in choice
    ]
    default = schema.get("default")
    if default not in (None, []):
        limits.append(f"{json.dumps(default)} when left out")
    return tuple(limits)
