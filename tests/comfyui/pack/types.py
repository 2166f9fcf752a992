"""How the test nodes declare their inputs."""

from __future__ import annotations

from typing import Any

Inputs = dict[str, dict[str, Any]]


class _AnyType(str):
    """A type that every other one is accepted for."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = _AnyType("*")
