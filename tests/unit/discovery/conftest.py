"""Fixtures of the tests of discovery by rendezvous servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from comfy_cluster.discovery import stun
from tests.unit.discovery.rendezvous import Rendezvous


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_RETRY_DELAY", "LARGEST_RETRY_DELAY", "FORMING_INTERVAL"):
        monkeypatch.setattr(stun, name, 0.01)


@pytest.fixture(params=[False, True])
def server(request: pytest.FixtureRequest) -> Iterator[Rendezvous]:
    """Of both kinds: polled, and one that holds the question until there is news."""
    with Rendezvous(tells_revisions=request.param) as made:
        yield made
