"""The source distribution, installed as a user would: complete, compiled, or whole without it.

Each installation gets an environment of its own, which borrows the dependencies (torch above all)
of the running one, so that it takes seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

import comfy_cluster

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("comfy_cluster", "stun_server")
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "__pycache__", "*.so", "*.pyd", "_fastpath.c", "build", "dist", "*.egg-info", "venv"
)
# Ends in a path that is no program, also where a test runs as root.
NO_COMPILER = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
QUICK_BUILD = {"CFLAGS": "-O0"}  # what is installed is looked at here, not how fast it is
ENGINE_IN_USE = "from comfy_cluster import fastpath; print(fastpath.ENGINE_NAME)"


def run(command: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command without any setting of ours but those given."""
    environ = {name: os.environ[name] for name in os.environ if "COMFY_CLUSTER" not in name}
    environ |= {"PYTHONDONTWRITEBYTECODE": "1"} | variables
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's source distribution, made from a clean copy of the checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(folder)]
    done = run([*command, str(copy)], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = folder.glob("comfy_cluster-*.tar.gz")
    return archive


class Environment:
    """A fresh virtual environment that sees the running one's packages after its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = ""
        self.scripts = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / Path(sys.executable).name
        command = [sys.executable, "-m", "venv", "--without-pip", str(folder / "env")]
        assert run(command, folder).returncode == 0
        self.site = Path(self.read("import sysconfig; print(sysconfig.get_path('purelib'))"))
        (self.site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def read(self, source: str) -> str:
        """What a line of Python prints there."""
        done = run([str(self.python), "-c", source], self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def install(self, archive: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--verbose"]
        options = ["--no-build-isolation", "--no-deps", "--no-index", "--ignore-installed"]
        return run([*pip, *options, str(archive)], self.folder, **variables)


def installed(archive: Path, folder: Path, **variables: str) -> Environment:
    environment = Environment(folder)
    done = environment.install(archive, **variables)
    environment.log = done.stdout + done.stderr
    assert done.returncode == 0, environment.log
    return environment


@pytest.fixture(scope="module")
def compiled(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An installation that required the compiled engine."""
    folder = tmp_path_factory.mktemp("compiled")
    return installed(sdist, folder, COMFY_CLUSTER_REQUIRE_FASTPATH="1", **QUICK_BUILD)


def source_files(suffixes: set[str]) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    }


def test_sdist_holds_every_source(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = source_files({".py", ".pyi", ".pyx", ".pxd", ".pxi", ".typed"})
    wanted |= {"proto/messages.proto", "setup.py", "requirements.txt", "LICENSE", "README.md"}
    assert wanted - held == set()
    assert {name for name in held if name.endswith((".so", ".pyd", ".pyc", "_fastpath.c"))} == set()


def test_installation_holds_every_module(compiled: Environment) -> None:
    wanted = source_files({".py", ".pyi", ".typed"})
    held = {
        path.relative_to(compiled.site).as_posix()
        for package in PACKAGES
        for path in (compiled.site / package).rglob("*")
    }
    assert wanted - held == set()


def test_installed_engine_is_the_compiled_one(compiled: Environment) -> None:
    assert compiled.read(ENGINE_IN_USE) == "compiled"
    for package in PACKAGES:
        file = Path(compiled.read(f"import {package}; print({package}.__file__)"))
        assert file.is_relative_to(compiled.site)


def test_who_builds_has_a_say_in_how_but_not_in_the_results(compiled: Environment) -> None:
    (command,) = (each for each in compiled.log.splitlines() if "_fastpath.c " in each + " ")
    options = [each for each in command.split() if each in ("-O3", "-O0", "-ffp-contract=off")]
    assert options[-3:] == ["-O3", "-O0", "-ffp-contract=off"]


def test_metadata_comes_from_one_place(compiled: Environment) -> None:
    source = (
        "import json; from importlib.metadata import metadata as m; d = m('comfy-cluster'); "
        "print(json.dumps([d['Version'], d['Requires-Python'], d.get_all('Requires-Dist')]))"
    )
    version, python, requirements = json.loads(compiled.read(source))
    assert version == comfy_cluster.__version__
    assert python == ">=3.10"
    runtime = [line for line in requirements if "extra ==" not in line]
    assert runtime == (ROOT / "requirements.txt").read_text().split()
    assert {line.split("extra == ")[1].strip("'\"") for line in requirements if ";" in line} == {
        "bench",
        "fuzz",
        "redis",
        "test",
    }


def test_installed_server_answers(compiled: Environment) -> None:
    source = "from stun_server.app import create_app; c = create_app().test_client(); "
    assert compiled.read(source + "print(c.get('/health').get_json()['status'])") == "healthy"


def test_installed_demo_runs(compiled: Environment) -> None:
    command = [str(compiled.scripts / "comfy-cluster"), "demo", "-n", "2"]
    done = run(command, compiled.folder, COLUMNS="200")
    assert done.returncode == 0, done.stdout + done.stderr


def test_installed_benchmarks_run(compiled: Environment) -> None:
    command = [str(compiled.scripts / "comfy-cluster"), "bench", "point-to-point", "--way", "tcp"]
    done = run([*command, "--megabytes", "0.1", "--rounds", "1", "--json", "-"], compiled.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["tables"][0]["ways"][0]["way"] == "tcp"


def test_without_a_compiler_the_twin_is_installed(sdist: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    done = environment.install(sdist, **NO_COMPILER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the compiled packet engine was NOT built" in done.stdout + done.stderr
    assert environment.read(ENGINE_IN_USE) == "pure Python"


def test_without_a_compiler_a_required_engine_is_an_error(sdist: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    done = environment.install(sdist, **NO_COMPILER, COMFY_CLUSTER_REQUIRE_FASTPATH="1")
    assert done.returncode != 0
    assert "/nonexistent/cc" in done.stdout + done.stderr
    assert not (environment.site / "comfy_cluster").exists()
