"""Caddy with HTTPS in front of rendezvous servers, with the project's own `deploy/Caddyfile`.

with running_server(folder) as server, running_caddy(folder, [server.port]) as proxy:
    requests.get(f"{proxy.url}/health", verify=str(proxy.root_certificate))
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.stun_server.servers import LOOPBACK, ROOT, free_port

CADDYFILE = ROOT / "deploy" / "Caddyfile"
START_TIMEOUT = 30.0  # seconds
_STOP_TIMEOUT = 10.0
_POLL_INTERVAL = 0.02


@dataclass(frozen=True, slots=True)
class RunningCaddy:
    """`url` is that of HTTPS at localhost."""

    url: str
    root_certificate: Path
    """Of Caddy's own authority, which signed its certificate."""
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")


def program(name: str) -> str:
    """Its path; the test is skipped where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@contextlib.contextmanager
def running_caddy(folder: Path, upstreams: Sequence[int], *more: str) -> Iterator[RunningCaddy]:
    """Caddy in front of the servers at these ports, which need not run; `more` global options."""
    port = free_port()
    options = ["admin off", "skip_install_trust", f"https_port {port}", f"http_port {free_port()}"]
    options += more
    variables = {
        "CADDY_GLOBAL_OPTIONS": "\n".join(options),
        "STUN_DOMAIN": "localhost",
        "STUN_UPSTREAMS": " ".join(f"{LOOPBACK}:{each}" for each in upstreams),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "HOME": str(folder),
    }
    log_path = folder / "caddy.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [program("caddy"), "run", "--config", str(CADDYFILE), "--adapter", "caddyfile"],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        root = folder / "data" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        _wait_for_certificate(port, process, log_path, root)
        yield RunningCaddy(f"https://localhost:{port}", root, log_path)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_TIMEOUT)


def _wait_for_certificate(
    port: int, process: subprocess.Popen[bytes], log_path: Path, root: Path
) -> None:
    """Until its certificate is that authority's, which it makes when it has started."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((LOOPBACK, port), timeout=5.0) as connection,
        ):
            trust = ssl.create_default_context(cafile=str(root))
            trust.wrap_socket(connection, server_hostname="localhost").close()
            return
        time.sleep(_POLL_INTERVAL)
    log = log_path.read_text(encoding="utf-8", errors="replace")
    raise RuntimeError(f"Caddy does not answer at port {port}:\n{log[-4000:]}")
