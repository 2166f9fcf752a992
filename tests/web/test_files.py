"""What the page's files must keep to, whatever the browser says; needs neither."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "comfy_cluster" / "web"
ALLOWED = {"../../scripts/app.js", "../../scripts/api.js"}
"""Other files of ComfyUI are on their way out, and the console says so to whoever imports them."""
MODULES = sorted(path for pattern in ("*.js", "*.mjs") for path in WEB.rglob(pattern))
_IMPORT = re.compile(r"""(?:from|import)\s*\(?\s*["']([^"']+)["']""")


def test_only_the_entry_is_a_js_file() -> None:
    # ComfyUI imports every .js file as an extension.
    assert [path.name for path in WEB.rglob("*.js")] == ["cluster.js"]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_imports_are_ours_or_the_two_that_stay(module: Path) -> None:
    for name in _IMPORT.findall(module.read_text(encoding="utf-8")):
        assert name in ALLOWED or (module.parent / name).is_file(), name


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_nothing_is_patched(module: Path) -> None:
    assert ".prototype" not in module.read_text(encoding="utf-8")
