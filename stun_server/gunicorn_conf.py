"""gunicorn's settings for the server, made of `STUN_*` variables:

    gunicorn -c python:stun_server.gunicorn_conf stun_server.wsgi:app

Threads, because a request that waits for news holds one. The master only looks whether all can be
opened; each worker makes its own connections, and its own UDP socket at the shared STUN port.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from stun_server.logs import logger, logging_config
from stun_server.settings import SettingsError, current_settings, keep, unknown_variables

# Nothing above imports prometheus_client, which reads this variable when it is imported.
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SHARED_MEMORY = Path("/dev/shm")
_LARGEST_DRAIN = 16  # reads of 64 KiB
STOP_LINGER = 0.2  # seconds that idle connections are kept when the server stops

try:
    _settings = current_settings()
except SettingsError as error:
    sys.exit(f"Error: {error}")
keep(_settings)  # workers are forked: a mistake in the file of keys ends none

_is_own_folder = _METRICS_FOLDER not in os.environ
if _is_own_folder:
    os.environ[_METRICS_FOLDER] = tempfile.mkdtemp(prefix="stun-server-metrics-")

bind = (
    f"[{_settings.host}]:{_settings.port}"
    if ":" in _settings.host
    else (f"{_settings.host}:{_settings.port}")
)
workers = _settings.workers
threads = _settings.threads
worker_class = "gthread"
worker_connections = 4 * threads
keepalive = 75  # seconds; longer than a proxy keeps its connections, so that none ends under it
timeout = 30  # seconds without a sign of life after which a worker is killed
graceful_timeout = 1  # second; requests that wait are sent away at once, others take ms
control_socket_disable = True
worker_tmp_dir = str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
logconfig_dict = logging_config(_settings.log_level)


def on_starting(server: Any) -> None:
    """In the master: ends the program, with a text, where a worker could not work."""
    from stun_server.binding.responder import CannotListen, open_sockets
    from stun_server.service import Service
    from stun_server.store import StoreUnavailable, open_store

    for name in unknown_variables(os.environ):
        logger.warning("! %s is no setting of this server", name)
    try:
        service = Service(_settings, open_store(_settings.store), is_shared=True)
        service.resume()
        service.close()
        if _settings.udp_port is not None:
            for each in open_sockets(_settings.udp_addresses, _settings.udp_port):
                each.close()
    except (StoreUnavailable, CannotListen, SettingsError) as error:
        on_exit(server)
        sys.exit(f"Error: {error}")


def on_reload(server: Any) -> None:
    """In the master, by SIGHUP: the file of keys is read again; a mistake in it changes nothing."""
    try:
        keep(current_settings())
    except SettingsError as error:
        logger.error("! the settings of before are kept: %s", error)


def post_worker_init(worker: Any) -> None:
    """In a worker: starts its threads, and lets nobody wait once it shall end."""
    from stun_server.binding.responder import CannotListen
    from stun_server.operations import SERVICE

    _wait_for_no_client()
    service = worker.wsgi.extensions[SERVICE]
    try:
        service.start(with_binding=True)
    except CannotListen as error:
        logger.error("! %s", error)
        service.start(with_binding=False)
    stop = signal.getsignal(signal.SIGTERM)

    def drain(number: int, frame: FrameType | None) -> None:
        service.drain()
        if callable(stop):
            stop(number, frame)

    signal.signal(signal.SIGTERM, drain)


def _wait_for_no_client() -> None:
    """gunicorn 27 waits for clients where it must not: for two seconds when it stops, which has two
    at most; and whenever it closes a connection, on the thread that accepts all others, so that
    clients that do not close theirs stop the server. Other versions have not got these names."""
    from gunicorn import util
    from gunicorn.workers import gthread

    if hasattr(gthread, "STOP_KEEPALIVE_LINGER"):
        gthread.STOP_KEEPALIVE_LINGER = STOP_LINGER
    if hasattr(util, "close_graceful"):
        util.close_graceful = _close_at_once


def _close_at_once(sock: socket.socket) -> None:
    """What has come is read first: else the answer may be taken back (RFC 9112, 9.6)."""
    with contextlib.closing(sock), contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        sock.setblocking(False)
        for _ in range(_LARGEST_DRAIN):
            if not sock.recv(65_536):
                break


def worker_exit(server: Any, worker: Any) -> None:
    """In a worker, at its end."""
    from stun_server.operations import SERVICE

    if worker.wsgi is not None:
        worker.wsgi.extensions[SERVICE].close()


def child_exit(server: Any, worker: Any) -> None:
    """In the master: a worker's gauges end with it."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    """In the master, at its end."""
    if _is_own_folder:
        shutil.rmtree(os.environ[_METRICS_FOLDER], ignore_errors=True)
