"""Fixtures of the transport's tests."""

from tests.engines import engine

__all__ = ["engine"]
