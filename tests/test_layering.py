"""A layer imports only downward, and the other rules about imports; see `layering.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layering import (
    LAYERS,
    LONGEST_FILE,
    LONGEST_FUNCTION,
    PACKAGE,
    ROOT,
    ROOT_MODULE,
    UNITS_WITHOUT_TORCH,
    check_file,
    check_source,
    module_name,
    project_files,
    unit_of,
)

# Imports the named modules, and all below a named folder of the package, in a process of its own;
# tells what came along.
IMPORT_ALL = """
import importlib, json, pkgutil, sys
for name in json.loads(sys.argv[1]):
    module = importlib.import_module(name)
    folders = getattr(module, "__path__", []) if "." in name else []
    for item in pkgutil.walk_packages(folders, name + "."):
        importlib.import_module(item.name)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def modules_imported_with(names: list[str]) -> set[str]:
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_project_keeps_every_rule() -> None:
    files = list(project_files())
    assert ROOT / PACKAGE / "config.py" in files
    assert Path(__file__) in files
    assert ROOT / "__init__.py" in files
    assert [text for path in files for text in check_file(path)] == []


def test_every_unit_has_a_layer() -> None:
    folder = ROOT / PACKAGE
    units = {unit_of(module_name(path)) for path in project_files() if path.is_relative_to(folder)}
    assert units <= set(LAYERS), "add the unit to the layer table"


def test_importing_needs_no_torch() -> None:
    units = [unit for unit in sorted(UNITS_WITHOUT_TORCH) if is_present(unit)]
    assert {"", "fastpath", "config"} <= set(units)
    modules = modules_imported_with([f"{PACKAGE}.{unit}".rstrip(".") for unit in units])
    assert PACKAGE in modules
    assert "torch" not in modules


def is_present(unit: str) -> bool:
    if unit == "_fastpath":  # through fastpath, where it is built
        return False
    path = ROOT / PACKAGE / unit
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def test_the_codec_shared_with_the_server_loads_the_standard_library_only() -> None:
    with_codec = modules_imported_with(["stun_server.binding.messages"])
    foreign = with_codec - modules_imported_with([]) - set(sys.stdlib_module_names)
    assert foreign == {"stun_server"}


def test_importing_the_package_loads_the_standard_library_only() -> None:
    with_package = modules_imported_with([PACKAGE])
    foreign = with_package - modules_imported_with([]) - set(sys.stdlib_module_names)
    assert foreign == {PACKAGE}


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        ("comfy_cluster.wire.x", "import comfy_cluster.protocol.peer", "layer 1"),
        ("comfy_cluster.wire.x", "from ..protocol import peer", "layer 1"),
        ("comfy_cluster.codec.x", "from comfy_cluster import wire", "layer 1"),
        ("comfy_cluster.codec.x", "def f():\n    from comfy_cluster.cluster import a", "layer 1"),
        ("comfy_cluster.protocol.x", "from comfy_cluster.transport.handle import H", "layer 2"),
        ("comfy_cluster.config", "from comfy_cluster import codec", "layer 0"),
        ("comfy_cluster.config", "import importlib\nimportlib.import_module('.wire')", "layer 0"),
        ("comfy_cluster.nodes.image", "from comfy_cluster.cli import main", "layer 7"),
        ("comfy_cluster.magic", "import os", "no layer"),
        ("comfy_cluster.protocol.x", "from comfy_cluster import _fastpath", "fastpath.py only"),
        ("comfy_cluster.transport.x", "import comfy_cluster._fastpath_py", "fastpath.py only"),
        ("comfy_cluster.nodes.image", "import folder_paths", "comfyui/ only"),
        ("comfy_cluster.runtime", "from comfy.utils import x", "comfyui/ only"),
        ("comfy_cluster.cluster.x", "import socket", "transport/ and discovery/ only"),
        ("comfy_cluster.cli.demo", "from socket import socket", "transport/ and discovery/ only"),
        ("comfy_cluster.protocol.x", "import time", "time is an argument"),
        ("comfy_cluster.codec.x", "from datetime import datetime", "time is an argument"),
        ("comfy_cluster.protocol.x", "import threading", "no threads"),
        ("comfy_cluster.wire.x", "from concurrent.futures import Future", "no threads"),
        ("comfy_cluster.transport.x", "import torch.nn", "without torch"),
        ("comfy_cluster.fastpath", "from torch import Tensor", "without torch"),
        ("comfy_cluster.cluster.x", "import os\nos.environ['A']", "the environment"),
        ("comfy_cluster.transport.x", "import os\nos.getenv('A')", "the environment"),
        ("stun_server.app", "from os import environ", "the environment"),
        ("comfy_cluster.protocol.x", "import random\nrandom.random()", "as an argument"),
        ("stun_server.app", "from comfy_cluster.config import x", "stands alone"),
        ("comfy_cluster.cluster.x", "import stun_server", "must not import stun_server"),
        (
            "comfy_cluster.cluster.x",
            "from stun_server.binding.messages import x",
            "must not import stun_server",
        ),
        (
            "comfy_cluster.transport.binding_requests",
            "from stun_server.binding.responder import x",
            "must not import stun_server",
        ),
        (ROOT_MODULE, "import torch", "by its own name"),
        (ROOT_MODULE, "from .comfy_cluster import nodes", "by its own name"),
        (ROOT_MODULE, "from . import comfy_cluster", "by its own name"),
        ("tests.x", "pass\n" * (LONGEST_FILE + 1), "the limit is"),
        ("tests.x", "def f():\n" + "    pass\n" * LONGEST_FUNCTION, "the limit is"),
    ],
)
def test_a_broken_rule_is_found(module: str, source: str, rule: str) -> None:
    found = check_source(source, module, is_package=module == ROOT_MODULE)
    assert len(found) == 1
    assert found[0].startswith(f"{module}:")
    assert rule in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("comfy_cluster.protocol.x", "from comfy_cluster.wire import y\nfrom . import z"),
        ("comfy_cluster.protocol.x", "import random\ndef f(rng: random.Random): rng.random()"),
        ("comfy_cluster.transport.x", "import socket, time, threading"),
        ("comfy_cluster.nodes.image", "from comfy_cluster.nodes.base import ClusterNode"),
        ("comfy_cluster.comfyui.x", "import folder_paths, comfy.utils"),
        (
            "comfy_cluster.transport.binding_requests",
            "from stun_server.binding.messages import parse_message",
        ),
        ("comfy_cluster.identity", "import comfy_cluster\nfrom comfy_cluster import __version__"),
        ("comfy_cluster.fastpath", "from . import _fastpath"),
        ("comfy_cluster.config", "import os\nos.environ"),
        ("comfy_cluster.cli.main", "import os\nos.environ"),
        ("tests.x", "import socket, time, torch\nimport comfy_cluster._fastpath"),
        (ROOT_MODULE, "import sys\nfrom comfy_cluster.comfyui import loading"),
        ("tests.x", "pass\n" * LONGEST_FILE),
    ],
)
def test_what_is_allowed_is_not_found(module: str, source: str) -> None:
    assert check_source(source, module) == []


def test_relative_imports_of_a_package_start_at_itself() -> None:
    source = "from .peer import Peer\nfrom ..transport import x"
    found = check_source(source, "comfy_cluster.protocol", is_package=True)
    assert len(found) == 1
    assert "comfy_cluster.transport.x" in found[0]
