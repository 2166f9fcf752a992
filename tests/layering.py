"""The rules about who may import what, as functions on source text.

`check_source` gives one line for each broken rule. `test_layering.py` runs it over the project,
and over small broken snippets. The layer table is section 1 of the architecture.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "comfy_cluster"
SERVER = "stun_server"
ROOT_MODULE = "__init__"  # of the checkout itself: what ComfyUI loads

# Unit (a module or folder of comfy_cluster) and its layer; "" is comfy_cluster/__init__.py.
LAYERS = {
    "": 0,
    "_fastpath": 0,
    "_fastpath_py": 0,
    "config": 0,
    "errors": 0,
    "fastpath": 0,
    "identity": 0,
    "settings_parsing": 0,
    "settings_values": 0,
    "batches": 1,
    "values": 1,
    "codec": 1,
    "wire": 1,
    "workflows": 1,
    "protocol": 2,
    "discovery": 3,
    "transport": 3,
    "cluster": 4,
    "work": 5,
    "comfyui": 6,
    "runtime": 6,
    "benchmarks": 7,
    "doctor": 7,
    "nodes": 7,
    "cli": 8,
    "extension": 8,
}
ENGINES = {"_fastpath", "_fastpath_py"}
FIRST_LAYER_WITH_CLOCK = 3
CLOCK_MODULES = {"time", "datetime", "sched", "_thread"}
CONCURRENCY_MODULES = {"threading", "queue", "concurrent", "multiprocessing", "asyncio", "signal"}
UNITS_WITHOUT_THREADS = {"batches", "values", "wire", "workflows", "protocol"}
SOCKET_MODULES = {"socket", "_socket", "select", "selectors", "socketserver"}
UNITS_WITH_SOCKETS = {"transport", "discovery", "benchmarks"}
UNITS_WITHOUT_TORCH = {name for name, layer in LAYERS.items() if layer == 0} | {
    "wire",
    "workflows",
    "protocol",
    "transport",
    "discovery",
    "doctor",
}
COMFYUI_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "nodes",
    "server",
}
# The readers of the environment, and the composition roots that hand it to them.
MODULES_WITH_ENVIRON = {"comfy_cluster.config", "comfy_cluster.runtime"} | {
    f"stun_server.{name}" for name in ("settings", "wsgi", "gunicorn_conf")
}
# What the package may import of the server, by unit: the command's part of it; the codec of STUN
# messages, which needs the standard library alone.
SERVER_PARTS = {"cli": "stun_server.commands", "transport": "stun_server.binding.messages"}
LONGEST_FILE = 500
LONGEST_FUNCTION = 60


def project_files(root: Path = ROOT) -> Iterator[Path]:
    """Every hand-written Python file of the project."""
    for path in (root / "setup.py", root / "__init__.py"):
        if path.exists():
            yield path
    for folder in (PACKAGE, SERVER, "tests", "benchmarks", "scripts"):
        for path in sorted((root / folder).rglob("*.py")):
            if not path.name.endswith("_pb2.py"):
                yield path


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or ROOT_MODULE


def unit_of(module: str) -> str:
    """The part of comfy_cluster that a module belongs to: `comfy_cluster.wire.x` is in `wire`."""
    return module.split(".")[1] if "." in module else ""


def check_file(path: Path, root: Path = ROOT) -> list[str]:
    is_package = path.name == "__init__.py"
    source = path.read_text(encoding="utf-8")
    return check_source(source, module_name(path, root), is_package=is_package)


def check_source(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Every broken rule in the source text of `module`, as `module:line: text`."""
    tree = ast.parse(source)
    found = list(_check_lengths(source, tree))
    for line, target in imports_of(tree, module, is_package=is_package):
        found += [(line, text) for text in _check_import(module, target)]
    found += _check_environ(tree, module)
    found += _check_chance(tree, module)
    return [f"{module}:{line}: {text}" for line, text in sorted(found)]


def imports_of(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything imported, wherever in the file it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package=is_package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _dotted(node.func) in IMPORT_CALLS:
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                relative = name.value.startswith(".")
                yield node.lineno, f"{PACKAGE}{name.value}" if relative else name.value


IMPORT_CALLS = {"importlib.import_module", "import_module", "__import__"}


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    dropped = node.level - 1 if is_package else node.level
    base = parts[: len(parts) - dropped]
    return ".".join([*base, *([node.module] if node.module else [])])


def _check_import(module: str, target: str) -> Iterator[str]:
    top = target.split(".")[0]
    if module.split(".")[0] == SERVER and top == PACKAGE:
        yield f"{SERVER} stands alone and must not import {target}"
    if module == ROOT_MODULE and top != PACKAGE and top not in sys.stdlib_module_names:
        yield f"the root imports {PACKAGE} by its own name and the standard library, not {target}"
    if module.split(".")[0] != PACKAGE:
        return
    unit = unit_of(module)
    if unit not in LAYERS:
        yield f"{unit!r} has no layer: add it to the layer table"
        return
    if top == SERVER and not target.startswith(SERVER_PARTS.get(unit, "-")):
        yield f"{PACKAGE} must not import {target}"
    if top == PACKAGE:
        yield from _check_layer(unit, target)
    if top in COMFYUI_MODULES and unit != "comfyui":
        yield f"ComfyUI's {top!r} may be imported in comfyui/ only"
    if top in SOCKET_MODULES and unit not in UNITS_WITH_SOCKETS:
        yield f"{top!r} may be imported in transport/ and discovery/ only"
    if top in CLOCK_MODULES and LAYERS[unit] < FIRST_LAYER_WITH_CLOCK:
        yield f"{top!r}: below layer {FIRST_LAYER_WITH_CLOCK} time is an argument"
    if top in CONCURRENCY_MODULES and unit in UNITS_WITHOUT_THREADS:
        yield f"{top!r}: {unit} has no threads and no event loop"
    if top == "torch" and unit in UNITS_WITHOUT_TORCH:
        yield f"{unit or PACKAGE} must be importable without torch"


def _check_layer(unit: str, target: str) -> Iterator[str]:
    wanted = unit_of(target)
    if wanted not in LAYERS:
        wanted = ""  # a name that comfy_cluster/__init__.py holds
    if wanted == unit:
        return
    if wanted in ENGINES and unit not in {"fastpath", *ENGINES}:
        yield f"{target} may be imported by fastpath.py only"
    if LAYERS[wanted] > LAYERS[unit] or (LAYERS[wanted] == LAYERS[unit] != 0):
        yield f"layer {LAYERS[unit]} ({unit}) must not import {target} of layer {LAYERS[wanted]}"


def _check_environ(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    in_project = module.split(".")[0] in (PACKAGE, SERVER)
    is_cli = module.split(".")[:2] == [PACKAGE, "cli"]
    if not in_project or is_cli or module in MODULES_WITH_ENVIRON:
        return
    names = {"environ", "getenv", "putenv", "unsetenv", "environb"}
    for node in ast.walk(tree):
        is_use = isinstance(node, ast.Attribute) and _dotted(node) in {f"os.{n}" for n in names}
        is_import = (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in names for alias in node.names)
        )
        if (is_use or is_import) and isinstance(node, ast.expr | ast.stmt):
            yield node.lineno, "the environment is read in config.py and settings.py only"


def _check_chance(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Below layer 3 chance is an argument: a `random.Random`, never the module's functions."""
    is_ours = module.split(".")[0] == PACKAGE
    if not is_ours or LAYERS.get(unit_of(module), 0) >= FIRST_LAYER_WITH_CLOCK:
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or _dotted(node.value) != "random":
            continue
        if node.attr not in ("Random", "SystemRandom"):
            yield node.lineno, f"random.{node.attr}: take a random.Random as an argument"


def _check_lengths(source: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    lines = source.count("\n")
    if lines > LONGEST_FILE:
        yield lines, f"{lines} lines; the limit is {LONGEST_FILE}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                text = f"{node.name} has {length} lines; the limit is {LONGEST_FUNCTION}"
                yield node.lineno, text


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
