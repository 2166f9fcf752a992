"""Real ComfyUI processes, alone or as one cluster, on 127.0.0.1.

    with ComfyCluster(4) as cluster:
        history = cluster.leader.client.run(prompt)

Each instance has a base directory of its own (custom nodes linked, input, output, database), its
ports and a log, and keeps all of them when it is started again. Instances end with this process.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tests.comfyui.client import ComfyClient, History
from tests.comfyui.place import ROOT, ComfyPlace, find_comfyui
from tests.comfyui.preloading import THREAD_VARIABLES, ForkedProcess, preloader_of
from tests.comfyui.signals import FOLDER_VARIABLE, Signals

LOOPBACK = "127.0.0.1"
START_TIMEOUT = 180.0  # seconds for ComfyUI to answer; 10 s each on a quiet machine
CONNECT_TIMEOUT = 60.0
END_TIMEOUT = 15.0
_POLL_INTERVAL = 0.1
_LOG_LINE_COUNT = 40  # shown when something fails
# Below the range that systems take ports of outgoing connections from: nobody else gets them
# between the choice of a port and its use, also while an instance is started again.
_PORT_RANGE = (18000, 32000)
_FOLDERS = ("custom_nodes", "input", "output", "temp", "user/default/workflows", "models")
# Spaces: the folder of a node pack may have any name.
_PACKS = {"my cluster nodes": ROOT, "cluster test nodes": Path(__file__).parent / "pack"}


def free_ports(count: int, kind: socket.SocketKind) -> list[int]:
    """Ports of this machine that nobody uses at this moment."""
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            port = random.randrange(*_PORT_RANGE)
            each = stack.enter_context(socket.socket(socket.AF_INET, kind))
            with contextlib.suppress(OSError):
                each.bind((LOOPBACK, port))
                ports.append(port)
    return ports


class ComfyInstance:
    """One ComfyUI process. A context manager: started, and ended in every case."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        place: ComfyPlace | None = None,
    ) -> None:
        """`settings`: of the cluster, without their prefix; None: a cluster of one.

        `options`: further arguments of ComfyUI.
        """
        self.folder = folder
        self.port = free_ports(1, socket.SOCK_STREAM)[0] if port is None else port
        self.client = ComfyClient(f"http://{LOOPBACK}:{self.port}", describe=self.describe)
        self.settings = dict(settings or {})
        self._options = list(options)
        self._place = place or find_comfyui()
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        for name in _FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, target in _PACKS.items():
            (folder / "custom_nodes" / name).symlink_to(target, target_is_directory=True)

    @property
    def index(self) -> int:
        return int(self.settings.get("INSTANCE_INDEX", "0"))

    @property
    def log_path(self) -> Path:
        return self.folder / "comfyui.log"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def __enter__(self) -> ComfyInstance:
        self.start()
        try:
            self.wait_until_up()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the process and returns at once; `wait_until_up` follows."""
        assert not self.is_running, "already running"
        preloader = preloader_of(self._place)
        if preloader is not None:
            self._process = preloader.start(
                self._arguments(),
                folder=self._place.folder,
                environ=self._environ(),
                log=self.log_path,
            )
            return
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._place.python), *self._arguments()],
                cwd=self._place.folder,
                env=self._environ(),
                stdin=subprocess.PIPE,  # its end is the end of the instance, see pack/__init__.py
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl+C is for the tests, which end the instances
            )

    def _arguments(self) -> list[str]:
        return [
            str(self._place.main),
            *("--cpu", "--disable-api-nodes", "--disable-auto-launch"),
            *("--listen", LOOPBACK, "--port", str(self.port)),
            *("--base-directory", str(self.folder)),
            *("--database-url", f"sqlite:///{self.folder / 'comfyui.db'}"),
            *self._options,
        ]

    def _environ(self) -> dict[str, str]:
        prefix = "COMFY_CLUSTER_"
        ours = {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
        settings = {prefix + name: value for name, value in self.settings.items()}
        shared = {FOLDER_VARIABLE: str(self.folder.parent / "shared"), "PYTHONUNBUFFERED": "1"}
        return ours | THREAD_VARIABLES | shared | settings

    def wait_until_up(self) -> None:
        """Waits until ComfyUI answers; AssertionError with its last lines if it ended instead."""
        deadline = time.monotonic() + START_TIMEOUT
        while not self.client.is_up():
            assert self.is_running, f"ComfyUI ended while it started\n{self.describe()}"
            assert time.monotonic() < deadline, f"ComfyUI does not answer\n{self.describe()}"
            time.sleep(_POLL_INTERVAL)

    def stop(self) -> int | None:
        """Ends it as Ctrl+C does, so that what runs at its exit runs. Twice is fine.

        Its exit code; None if it had to be killed.
        """
        code = None
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(END_TIMEOUT)
        self.kill()
        return code

    def kill(self) -> None:
        """Ends it at once, as a crash would (kill -9). Twice is fine."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        if isinstance(self._process, subprocess.Popen) and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def restart(self, settings: Mapping[str, str] | None = None) -> None:
        """Ends it if it runs, and starts it under the same ports and folder.

        `settings` replace those that it had.
        """
        self.stop()
        if settings is not None:
            self.settings = dict(settings)
        self.start()
        self.wait_until_up()

    def describe(self) -> str:
        """The last lines of its log."""
        lines = self.log_text().rstrip().splitlines()[-_LOG_LINE_COUNT:]
        state = "running" if self.is_running else "ended"
        return "\n".join([f"-- instance {self.index} ({state}), {self.log_path}:", *lines])

    def log_text(self) -> str:
        """All that it wrote, over all its starts."""
        if not self.log_path.exists():
            return ""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def saved(self, name: str) -> list[Any]:
        """What a TestSaveTensor node of that name got last: one element, or those of a list."""
        path = self.folder / "output" / f"{name}.pt"
        values = torch.load(path, weights_only=True)
        assert isinstance(values, list)
        return values

    def has_saved(self, name: str) -> bool:
        return (self.folder / "output" / f"{name}.pt").exists()

    def image_paths(self, history: History) -> list[Path]:
        """Files of all SaveImage and PreviewImage nodes of a run, in the order of node ids."""
        paths = []
        for _, outputs in sorted(history.outputs.items(), key=lambda item: item[0]):
            for image in outputs.get("images", ()):
                folder = self.folder / str(image["type"]) / str(image["subfolder"])
                paths.append(folder / str(image["filename"]))
        return paths


class ComfyCluster:
    """Several ComfyUI processes with the settings of one static cluster. A context manager."""

    def __init__(
        self,
        count: int,
        *,
        folder: Path | None = None,
        settings: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """`settings`: those of every instance beside the usual ones, without their prefix."""
        self._stack = contextlib.ExitStack()
        if folder is None:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="comfy-")))
        self.signals = Signals(folder / "shared", describe=self.describe)
        http_ports = free_ports(count, socket.SOCK_STREAM)
        udp_ports = free_ports(count, socket.SOCK_DGRAM)
        self.instances = [
            ComfyInstance(
                folder / f"instance-{index}",
                port=http_ports[index],
                settings={**_cluster_settings(index, udp_ports), **(settings or {})},
                options=options,
            )
            for index in range(count)
        ]

    @property
    def leader(self) -> ComfyInstance:
        return self.instances[0]

    @property
    def followers(self) -> list[ComfyInstance]:
        return self.instances[1:]

    def __enter__(self) -> ComfyCluster:
        try:
            for each in self.instances:
                self._stack.callback(each.kill)
                each.start()
            for each in self.instances:
                each.wait_until_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def describe(self) -> str:
        """The last lines of every instance's log."""
        return "\n".join(each.describe() for each in self.instances)

    def wait_until_connected(self) -> None:
        """Waits until the leader has all instances, as its ClusterInfo node tells."""
        deadline = time.monotonic() + CONNECT_TIMEOUT
        wanted = f"Connected: {len(self.instances)}/{len(self.instances)} instances"
        while wanted not in (info := self.info()):
            assert time.monotonic() < deadline, f"not connected: {info}\n{self.describe()}"
            time.sleep(_POLL_INTERVAL)

    def info(self) -> str:
        """What the leader's ClusterInfo node shows."""
        history = self.leader.client.run({"1": {"class_type": "ClusterInfo", "inputs": {}}})
        return str(history.outputs["1"]["text"][0])

    def recover(self) -> None:
        """Makes it whole and idle again, whatever a test has left."""
        for each in self.instances:
            if not each.is_running:
                each.restart()
            elif each.client.pending_ids():
                each.client.post("/queue", {"clear": True})
                each.client.interrupt()
        self.wait_until_idle()
        self.wait_until_connected()

    def wait_until_idle(self) -> None:
        """Waits until no instance runs a prompt or has one waiting."""
        deadline = time.monotonic() + CONNECT_TIMEOUT
        while busy := list(self._busy()):
            assert time.monotonic() < deadline, f"still busy: {busy}\n{self.describe()}"
            time.sleep(_POLL_INTERVAL)

    def _busy(self) -> Iterator[int]:
        for each in self.instances:
            if each.is_running and each.client.pending_ids():
                yield each.index


def _cluster_settings(index: int, udp_ports: Sequence[int]) -> dict[str, str]:
    return {
        "INSTANCE_COUNT": str(len(udp_ports)),
        "INSTANCE_INDEX": str(index),
        "ROLE": "FOLLOWER" if index else "LEADER",
        "REGISTRATION_MODE": "static",
        "UDP_HOSTNAMES": ",".join(f"{LOOPBACK}:{port}" for port in udp_ports),
    }
