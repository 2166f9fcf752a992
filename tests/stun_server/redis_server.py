"""A redis-server of the tests' own: on 127.0.0.1, ended with them.

server = RedisServer.start(folder)
store = open_store(server.url)
server.stop()
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import redis

from tests.stun_server.servers import LOOPBACK, free_port

PROGRAM = shutil.which("redis-server")
WHY_SKIPPED = "redis-server is not installed (Debian: apt-get install redis-server)"
_START_TIMEOUT = 20.0  # seconds
_POLL_INTERVAL = 0.02


class RedisServer:
    """One server, which may be ended and started again at the same port.

    Then it is empty, unless it is a durable one.
    """

    def __init__(self, folder: Path, port: int, *, is_durable: bool = False) -> None:
        self._folder = folder
        self._port = port
        self._is_durable = is_durable
        self.process = self._launch()

    @classmethod
    def start(cls, folder: Path, *, is_durable: bool = False) -> RedisServer:
        """RuntimeError: it does not start; its log is in the text."""
        server = cls(folder, free_port(), is_durable=is_durable)
        server.wait_until_ready()
        return server

    @property
    def url(self) -> str:
        """Value of STUN_STORE."""
        return f"redis://{LOOPBACK}:{self._port}/0"

    def client(self) -> Any:
        """A connection beside the store's."""
        return redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=5.0)

    def empty(self) -> None:
        """Removes all that it keeps."""
        with self.client() as client:
            client.flushall()

    def stop(self) -> None:
        """Ends it at once, as the loss of its machine would."""
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        """Where it was."""
        self.process = self._launch()
        self.wait_until_ready()

    def freeze(self) -> None:
        """It answers nobody from now on; the system still takes connections for it."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It answers again."""
        self.process.send_signal(signal.SIGCONT)

    def wait_until_ready(self) -> None:
        """RuntimeError: it has ended, or does not answer in time."""
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(redis.RedisError), self.client() as client:
                client.ping()
                return
            time.sleep(_POLL_INTERVAL)
        self.stop()
        raise RuntimeError(f"redis-server did not start:\n{self._log.read_text('utf-8')}")

    @property
    def _log(self) -> Path:
        return self._folder / "redis.log"

    def _launch(self) -> subprocess.Popen[bytes]:
        assert PROGRAM is not None, WHY_SKIPPED
        keeping = ("yes", "--appendfsync", "always") if self._is_durable else ("no",)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [
                    *(PROGRAM, "--bind", LOOPBACK, "--port", str(self._port)),
                    *("--save", "", "--dir", str(self._folder), "--appendonly", *keeping),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
