"""Fixtures: ComfyUI's modules, old and new."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.comfyui.fake_modules import FakeComfyUI


@pytest.fixture(params=[False, True], ids=["old", "new"])
def comfyui(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeComfyUI]:
    """ComfyUI's modules can be imported."""
    fake = FakeComfyUI(str(tmp_path), is_new=request.param)
    with fake.installed():
        yield fake
