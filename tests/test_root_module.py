"""What ComfyUI loads from a clone: the root's `__init__.py`, beside a small stand-in package.

Each test runs it in a process of its own, as ComfyUI does it: by its path, under a name made of the
path, after `server` was imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT_FILE = Path(__file__).resolve().parents[1] / "__init__.py"

# Arguments: JSON of folders to load, whether ComfyUI is there, and a module to import before.
LOAD = """
import importlib.util, json, logging, sys, types
logging.basicConfig(format="%(levelname)s %(message)s", level="INFO")
given = json.loads(sys.argv[1])
if given["inside_comfyui"]:
    sys.modules["server"] = types.ModuleType("server")
    sys.modules["server"].PromptServer = object
if given["before"]:
    importlib.import_module(given["before"])
path = list(sys.path)
for folder in given["folders"]:
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
package = sys.modules.get("comfy_cluster")
files = [str(getattr(each, "__file__", None)) for each in list(sys.modules.values())]
print(json.dumps({
    "nodes": sorted(module.NODE_CLASS_MAPPINGS),
    "titles": module.NODE_DISPLAY_NAME_MAPPINGS,
    "web": module.WEB_DIRECTORY,
    "package": getattr(package, "__file__", None),
    "loads": getattr(sys.modules.get("comfy_cluster.extension"), "loads", 0),
    "twice": sorted({each for each in files if files.count(each) > 1 and "comfy" in each}),
    "path_is_as_before": sys.path == path,
    "docs": importlib.util.find_spec("docs") is not None,
}))
"""
EXTENSION = """
loads = 0

def load():
    global loads
    loads += 1
    return {"ClusterInfo": object}, {"ClusterInfo": "Cluster Info"}
"""


@dataclass(frozen=True)
class Clone:
    """A folder as the user has it."""

    folder: Path

    @property
    def package(self) -> Path:
        return self.folder / "comfy_cluster"


def write_package(folder: Path, version: str, extension: str = EXTENSION) -> Path:
    package = folder / "comfy_cluster"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f'"""Stand-in."""\n\n__version__ = "{version}"\n')
    (package / "extension.py").write_text(extension)
    return package


def clone(folder: Path, version: str = "1.0.0", extension: str = EXTENSION) -> Clone:
    write_package(folder, version, extension)
    messages = folder / "stun_server" / "binding" / "messages.py"
    messages.parent.mkdir(parents=True)
    for path in (messages.parents[1] / "__init__.py", messages.with_name("__init__.py"), messages):
        path.write_text("")
    (folder / "__init__.py").write_text(ROOT_FILE.read_text())
    (folder / "docs").mkdir()
    (folder / "docs" / "__init__.py").write_text("")
    return Clone(folder)


@dataclass
class Loaded:
    """What the process tells."""

    lines: list[str]
    """What it logged."""
    told: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.told[name]


def load(
    *clones: Clone,
    inside_comfyui: bool = True,
    importable_from: Path | None = None,
    before: str = "",
    cwd: Path | None = None,
) -> Loaded:
    given = {
        "folders": [str(each.folder) for each in clones],
        "inside_comfyui": inside_comfyui,
        "before": before,
    }
    done = subprocess.run(
        # -S: without what is installed here, above all this very project.
        [sys.executable, "-S", "-c", LOAD, json.dumps(given)],
        env={"PYTHONPATH": str(importable_from or "")},
        cwd=cwd or clones[0].folder.parents[1],
        capture_output=True,
        text=True,
        timeout=100,
    )
    if done.returncode:
        return Loaded(done.stderr.splitlines())
    return Loaded(done.stderr.splitlines(), json.loads(done.stdout))


@pytest.fixture
def custom_nodes(tmp_path: Path) -> Path:
    folder = tmp_path / "ComfyUI" / "custom_nodes"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["ComfyUI-Cluster", "my.cluster v1", "comfy_cluster", "nodes"])
def test_a_clone_loads_under_any_name(custom_nodes: Path, name: str) -> None:
    own = clone(custom_nodes / name)
    loaded = load(own)
    assert loaded.lines == []
    assert loaded["nodes"] == ["ClusterInfo"]
    assert loaded["titles"] == {"ClusterInfo": "Cluster Info"}
    assert loaded["web"] == "comfy_cluster/web"
    assert loaded["package"] == str(own.package / "__init__.py")
    assert loaded["twice"] == []


def test_a_clone_finds_the_codec_of_the_server_beside_it(custom_nodes: Path) -> None:
    uses_it = f"import stun_server.binding.messages\n{EXTENSION}"
    loaded = load(clone(custom_nodes / "comfyui-cluster", extension=uses_it))
    assert loaded.lines == []
    assert loaded["nodes"] == ["ClusterInfo"]
    assert loaded["path_is_as_before"]


def test_a_linked_clone_loads(custom_nodes: Path, tmp_path: Path) -> None:
    own = clone(tmp_path / "elsewhere")
    (custom_nodes / "cluster").symlink_to(own.folder, target_is_directory=True)
    loaded = load(Clone(custom_nodes / "cluster"))
    assert loaded["nodes"] == ["ClusterInfo"]
    assert loaded["package"] == str(own.package / "__init__.py")


def test_nothing_else_of_the_clone_can_be_imported(custom_nodes: Path) -> None:
    loaded = load(clone(custom_nodes / "cluster"))
    assert loaded["path_is_as_before"]
    assert not loaded["docs"]


def test_outside_of_comfyui_nothing_happens(custom_nodes: Path) -> None:
    loaded = load(clone(custom_nodes / "cluster"), inside_comfyui=False)
    assert loaded.lines == []
    assert (loaded["nodes"], loaded["titles"], loaded["web"]) == ([], {}, None)
    assert loaded["package"] is None


def test_an_installed_package_of_the_same_version_is_used(
    custom_nodes: Path, tmp_path: Path
) -> None:
    installed = write_package(tmp_path / "site-packages", "1.0.0")
    loaded = load(clone(custom_nodes / "cluster"), importable_from=tmp_path / "site-packages")
    assert loaded.lines == []
    assert loaded["nodes"] == ["ClusterInfo"]
    assert loaded["package"] == str(installed / "__init__.py")


def test_an_installed_package_of_another_version_is_not_used(
    custom_nodes: Path, tmp_path: Path
) -> None:
    installed = write_package(tmp_path / "site-packages", "0.9.0")
    own = clone(custom_nodes / "cluster")
    loaded = load(own, importable_from=tmp_path / "site-packages")
    assert loaded["package"] == str(own.package / "__init__.py")
    (line,) = loaded.lines
    assert line.startswith("WARNING ! ComfyUI Cluster 1.0.0 of ")
    assert f"not the installed version 0.9.0 of {installed}" in line
    assert line.endswith(f'-m pip install "{own.folder}"')


def test_a_clone_that_hides_its_package_is_no_package(custom_nodes: Path) -> None:
    """Other custom nodes put their own folder's parent on the path."""
    own = clone(custom_nodes / "comfy_cluster")
    loaded = load(own, importable_from=custom_nodes)
    assert loaded.lines == []
    assert loaded["package"] == str(own.package / "__init__.py")


def test_a_package_that_is_imported_already_is_used(custom_nodes: Path, tmp_path: Path) -> None:
    installed = write_package(tmp_path / "site-packages", "1.0.0")
    loaded = load(
        clone(custom_nodes / "cluster"),
        importable_from=tmp_path / "site-packages",
        before="comfy_cluster",
    )
    assert loaded["package"] == str(installed / "__init__.py")
    assert loaded["nodes"] == ["ClusterInfo"]


@pytest.mark.parametrize("source", ["import no_such_module", "from json import no_such_name"])
def test_a_missing_requirement_is_one_line(custom_nodes: Path, source: str) -> None:
    own = clone(custom_nodes / "cluster", extension=source)
    loaded = load(own)
    assert (loaded["nodes"], loaded["titles"], loaded["web"]) == ([], {}, None)
    (line,) = loaded.lines
    assert line.startswith("ERROR ! ComfyUI Cluster is not loaded: ")
    assert "no_such_" in line
    assert line.endswith(f'-m pip install -r "{own.folder / "requirements.txt"}"')


def test_a_mistake_of_its_own_is_shown_whole(custom_nodes: Path) -> None:
    source = "from comfy_cluster import no_such_module"
    lines = load(clone(custom_nodes / "cluster", extension=source)).lines
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("ImportError: cannot import name 'no_such_module'")


def test_a_second_copy_is_not_loaded(custom_nodes: Path) -> None:
    first, second = clone(custom_nodes / "cluster"), clone(custom_nodes / "cluster-2")
    loaded = load(first, second)
    assert loaded["loads"] == 1
    assert (loaded["nodes"], loaded["web"]) == ([], None)
    (line,) = loaded.lines
    assert str(first.folder) in line and f"{second.folder} is not loaded" in line
