"""gunicorn's settings for the server, made of `STUN_*` variables:

    gunicorn -c python:stun_server.gunicorn_conf stun_server.wsgi:app

Threads, because a request that waits for news holds one. The master only looks whether all can be
opened; each worker makes its own connections, and its own UDP socket at the shared STUN port.
"""

from __future__ import annotations

import json
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
from stun_server.slow_clients import IS_SUPPORTED

# Nothing above imports prometheus_client, which reads this variable when it is imported.
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SHARED_MEMORY = Path("/dev/shm")
UNREAD_TIMEOUT = 0.1  # seconds that a thread waits for the rest of a body that nobody reads
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
worker_class = "stun_server.slow_clients.Worker" if IS_SUPPORTED else "gthread"
worker_connections = 4 * threads
keepalive = 75  # seconds; longer than a proxy keeps its connections, so that none ends under it
timeout = 30  # seconds without a sign of life after which a worker is killed
graceful_timeout = 1  # second; requests that wait are sent away at once, others take ms
control_socket_disable = True
sendfile = False  # it would wait for a slow client, on a thread
forwarder_headers = ""  # a proxy's clients send SCRIPT_NAME, and it would be cut off the path
worker_tmp_dir = str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
logconfig_dict = logging_config(_settings.log_level)


def on_starting(server: Any) -> None:
    """In the master: ends the program, with a text, where a worker could not work."""
    from stun_server.binding.responder import CannotListen, open_sockets
    from stun_server.service import Service
    from stun_server.store import StoreUnavailable, open_store

    if not IS_SUPPORTED:
        logger.warning(
            "! this gunicorn is none of those by which slow clients hold no thread (24 to 27): put"
            " a proxy in front of the server"
        )
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

    _wait_for_no_client(worker)
    _tell_in_json()
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


def _wait_for_no_client(worker: Any) -> None:
    """gunicorn 27 waits for clients where it must not. For two seconds when it stops, which has two
    at most. For five on a thread, for the rest of a body that no route reads. And whenever it
    closes a connection, on the thread that accepts all others, so that clients that do not close
    theirs stop the server. Other versions have not got all of these names."""
    from gunicorn import util
    from gunicorn.workers import gthread

    from stun_server.lingering import LingeringCloser

    if hasattr(gthread, "STOP_KEEPALIVE_LINGER"):
        gthread.STOP_KEEPALIVE_LINGER = STOP_LINGER
    if hasattr(gthread, "DEFAULT_WORKER_DATA_TIMEOUT"):
        gthread.DEFAULT_WORKER_DATA_TIMEOUT = UNREAD_TIMEOUT
    if hasattr(util, "close_graceful"):
        worker.lingering = LingeringCloser()
        util.close_graceful = worker.lingering.close_socket


def _tell_in_json() -> None:
    """gunicorn's own answer, to what is no HTTP, gets the form of all others."""
    from gunicorn import util

    if hasattr(util, "write_error"):
        util.write_error = _write_refusal


def _write_refusal(sock: socket.socket, status: int, reason: str, text: str) -> None:
    from gunicorn import util

    told = {
        "status": "error",
        "code": reason.lower().replace(" ", "_"),
        "error": text or reason,
        "request_id": "",
    }
    body = json.dumps(told, separators=(",", ":")) + "\n"
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Cache-Control: no-store\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    util.write_nonblock(sock, (head + body).encode())


def worker_exit(server: Any, worker: Any) -> None:
    """In a worker, at its end."""
    from stun_server.operations import SERVICE

    if worker.wsgi is not None:
        worker.wsgi.extensions[SERVICE].close()
    if hasattr(worker, "lingering"):
        worker.lingering.close()


def child_exit(server: Any, worker: Any) -> None:
    """In the master: a worker's gauges end with it."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    """In the master, at its end."""
    if _is_own_folder:
        shutil.rmtree(os.environ[_METRICS_FOLDER], ignore_errors=True)
