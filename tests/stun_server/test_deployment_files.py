"""What is in `deploy/`, and the lists and tables about the server, against the code."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stun_server import metrics, settings
from stun_server.app import create_app
from stun_server.operations import Operation
from stun_server.settings import RegistrySettings
from tests.stun_server.programs import CADDYFILE, program
from tests.stun_server.servers import ROOT

DEPLOY = ROOT / "deploy"
SERVER = ROOT / "stun_server"
GUNICORN = "gunicorn -c python:stun_server.gunicorn_conf stun_server.wsgi:app"
# Names of packages that differ from those of what is imported.
DISTRIBUTIONS = {"prometheus_client": "prometheus-client", "werkzeug": "flask"}
VARIABLES = {*settings._VARIABLES.values(), *settings._KEY_VARIABLES}


def text_of(path: Path) -> str:
    if not path.exists():
        pytest.skip(f"this copy of the project has no {path.name}")
    return path.read_text(encoding="utf-8")


def requirements(text: str) -> set[str]:
    return {line for line in text.splitlines() if line and not line.startswith("#")}


def alone() -> set[str]:
    """What the server's own list asks for."""
    return requirements(text_of(SERVER / "requirements.txt"))


def document_rows(name: str) -> list[list[str]]:
    passage = text_of(ROOT / "docs" / "stun-api.md").split(f"<!-- {name} -->\n")[1]
    lines = [line for line in passage.split("<!-- end -->")[0].splitlines() if line[:1] == "|"]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines[2:]]


# The server without the rest of the project.


def test_versions_stand_in_one_place() -> None:
    whole = requirements(text_of(ROOT / "requirements.txt"))
    extra = re.search(r"^redis = \[\n(.*?)^\]", text_of(ROOT / "pyproject.toml"), re.M | re.S)
    assert extra is not None
    assert alone() <= whole | set(re.findall(r'"(.*)"', extra[1]))


def test_list_for_the_server_alone_holds_all_that_it_imports() -> None:
    imported = set()
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"stun_server"}
    needed = {DISTRIBUTIONS.get(name, name) for name in foreign} | {"gunicorn"}
    assert needed == {re.split(r"[<>=\[]", line)[0] for line in alone()}


def test_commands_run_without_the_rest_of_the_project(tmp_path: Path) -> None:
    shutil.copytree(SERVER, tmp_path / "stun_server", ignore=shutil.ignore_patterns("__pycache__"))
    source = (
        "import runpy, sys; sys.modules['comfy_cluster'] = sys.modules['torch'] = None; "
        "sys.path.insert(0, '.'); sys.argv = ['-', 'keys', 'add', 'my-cluster']; "
        "runpy.run_module('stun_server', run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", source]
    environ = {"STUN_STORE": f"sqlite:///{tmp_path}/registry.sqlite3"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[\w-]{43}\n", done.stdout)


# deploy/


def test_caddyfile_is_formatted_and_valid(tmp_path: Path) -> None:
    caddy = program("caddy")
    environ = {"HOME": str(tmp_path), "STUN_UPSTREAMS": "one:8089 two:8089"}
    done = subprocess.run(
        [caddy, "adapt", "--config", str(CADDYFILE), "--adapter", "caddyfile"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "not formatted" not in done.stderr
    assert re.findall(r'"dial":"(.*?)"', done.stdout) == ["one:8089", "two:8089"]


def test_every_file_starts_the_same_gunicorn() -> None:
    dockerfile = text_of(DEPLOY / "Dockerfile")
    (command,) = re.findall(r"^CMD (\[.*\])$", dockerfile, re.M)
    assert shlex.join(json.loads(command)) == GUNICORN
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text_of(DEPLOY / "stun-server.service"))
    assert unit["Service"]["ExecStart"].endswith("/bin/" + GUNICORN)
    for document in ("deployment.md", "stun-api.md"):
        assert GUNICORN in text_of(ROOT / "docs" / document)


def test_container_looks_after_itself() -> None:
    """The line of HEALTHCHECK is Python that fails where nobody answers."""
    (command,) = re.findall(
        r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", text_of(DEPLOY / "Dockerfile"), re.M
    )
    python, *arguments = json.loads(command)
    assert python == "python"
    environ = {"STUN_SERVER_PORT": "9"}  # discard: nobody serves HTTP there
    done = subprocess.run(
        [sys.executable, *arguments], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "refused" in done.stderr


@pytest.mark.parametrize("name", ["compose.yaml", "compose.redis.yaml"])
def test_compose_files_set_what_there_is(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load(text_of(DEPLOY / name))
    services = found["services"]
    servers = {key: each for key, each in services.items() if "build" in each}
    upstreams = services["caddy"]["environment"]["STUN_UPSTREAMS"].split()
    assert upstreams == [f"{key}:8089" for key in servers]
    published = []
    for each in servers.values():
        assert each["environment"].keys() <= VARIABLES
        assert each["environment"]["STUN_TRUSTED_PROXIES"] == "1"
        assert (DEPLOY / each["build"]["context"] / each["build"]["dockerfile"]).exists()
        published += each.get("ports", [])
    assert published == ["3478:3478/udp"]  # never HTTP beside the proxy
    volumes = [line.split(":")[0] for each in services.values() for line in each.get("volumes", [])]
    assert {line for line in volumes if line[0] != "."} == found["volumes"].keys()
    assert all((DEPLOY / line).exists() for line in volumes if line[0] == ".")


def test_unit_sets_what_there_is() -> None:
    unit = text_of(DEPLOY / "stun-server.service")
    assert set(re.findall(r"(STUN_\w+)=", unit)) - {"STUN_"} <= VARIABLES


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = text_of(DEPLOY / "stun-server.service")
    copy = tmp_path / "stun-server.service"
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit, flags=re.M))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if "stun-server.service" in line]
    assert ours == []


# docs/stun-api.md


def test_table_of_settings_is_that_of_the_code() -> None:
    rows = document_rows("settings")
    assert [row[0] for row in rows] == [*settings._VARIABLES.values(), *settings._KEY_VARIABLES]
    defaults = {field.name: field.default for field in dataclasses.fields(RegistrySettings)}
    for row, name in zip(rows, settings._VARIABLES, strict=False):
        default = defaults[name]
        words = {None: "that of `STUN_SERVER_HOST", True: "true", False: "false"}
        shown = words.get(default) if default is None or isinstance(default, bool) else None
        assert row[1] == (shown or (f"{default:g}" if isinstance(default, float) else str(default)))


def test_table_of_routes_is_that_of_the_application() -> None:
    app = create_app(RegistrySettings(store="sqlite:////nonexistent/registry"))
    routes = {
        f"{method} {rule.rule}".replace("<", "{").replace(">", "}")
        for rule in app.url_map.iter_rules()
        if isinstance(getattr(app.view_functions[rule.endpoint], "operation", None), Operation)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {row[0] for row in document_rows("routes")} == routes


def test_table_of_metrics_is_that_of_the_code() -> None:
    source = (SERVER / "metrics.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"(stun_\w+)"', source))
    assert names and metrics.CONTENT_TYPE
    shown = [re.sub(r"(_total|\{.*)", "", row[0]) for row in document_rows("metrics")]
    assert set(shown) == names
