"""What ComfyUI loads when this folder is cloned or linked into its `custom_nodes`.

ComfyUI imports it under a name made of the folder's path, whatever that is. So it imports the one
package `comfy_cluster` by its own name, and there is never a second one under another name: an
installed package of this version, which may have the compiled engine, or else the one beside this
file, and `stun_server` of the same folder. Elsewhere, in a test run or a build, it does nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

PACKAGE = "comfy_cluster"
SERVER = "stun_server"  # of which the package uses the codec of STUN messages
FOLDER = Path(__file__).resolve().parent

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
WEB_DIRECTORY: str | None = None

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

_logger = logging.getLogger(PACKAGE)


def _is_inside_comfyui() -> bool:
    """ComfyUI has made its server before it loads any custom node."""
    return hasattr(sys.modules.get("server"), "PromptServer")


def _load() -> None:
    """Fills in what ComfyUI reads from this module; leaves it empty where something is missing."""
    global NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY
    if PACKAGE not in sys.modules:
        _import_package()
    try:
        extension = importlib.import_module(f"{PACKAGE}.extension")
    except ImportError as error:
        if (error.name or "").partition(".")[0] == PACKAGE:
            raise
        _logger.error(
            "! ComfyUI Cluster is not loaded: %s. Install what it needs and restart ComfyUI: "
            '"%s" -m pip install -r "%s"',
            error,
            sys.executable,
            FOLDER / "requirements.txt",
        )
        return
    # The modules of two copies of this file share the one package, and nothing else.
    first = vars(extension).setdefault("LOADED_FROM", FOLDER)
    if first != FOLDER:
        _logger.warning(
            "! the second copy of ComfyUI Cluster in %s is not loaded: remove it, or the one in %s",
            FOLDER,
            first,
        )
        return
    NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = extension.load()
    WEB_DIRECTORY = f"{PACKAGE}/web"


def _import_package() -> None:
    own = FOLDER / PACKAGE / "__init__.py"
    installed = _find_installed()
    if installed is not None:
        if _version_in(Path(installed.origin or "")) == _version_in(own):
            importlib.import_module(PACKAGE)
            return
        _logger.warning(
            "! ComfyUI Cluster %s of %s is used, not the installed version %s of %s. To get the "
            'compiled engine install this version: "%s" -m pip install "%s"',
            _version_in(own),
            FOLDER,
            _version_in(Path(installed.origin or "")),
            Path(installed.origin or "").parent,
            sys.executable,
            FOLDER,
        )
    if SERVER not in sys.modules:
        _import_from(SERVER, FOLDER / SERVER / "__init__.py")
    _import_from(PACKAGE, own)


def _find_installed() -> ModuleSpec | None:
    """The package that `import comfy_cluster` would find; not this file in a folder so named."""
    spec = importlib.util.find_spec(PACKAGE)
    is_package = spec is not None and _version_in(Path(spec.origin or "")) is not None
    return spec if is_package else None


def _version_in(path: Path) -> str | None:
    """The version that a package tells, without running it; None if it tells none."""
    if not path.is_file():
        return None
    found = re.search(r'^__version__ = "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    return found and found[1]


def _import_from(name: str, path: Path) -> None:
    """Imports the package of that file under its own name, without a new place to import from."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


if _is_inside_comfyui():
    _load()
