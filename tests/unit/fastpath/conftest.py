"""Fixtures of the engine's tests."""

from tests.engines import both_engines, engine

__all__ = ["both_engines", "engine"]
