"""The link lab's tests need root and some programs; without those they are skipped, and say why."""

from __future__ import annotations

import pytest

from benchmarks.netlab import why_unavailable


@pytest.fixture(scope="session")
def lab_reason() -> str | None:
    return why_unavailable()


@pytest.fixture
def needs_lab(lab_reason: str | None) -> None:
    if lab_reason is not None:
        pytest.skip(lab_reason)


@pytest.fixture(params=["kernel", "relay"])
def made_by(request: pytest.FixtureRequest) -> str:
    """Each way of making links: they must not differ."""
    return str(request.param)
