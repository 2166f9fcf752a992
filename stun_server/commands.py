"""`comfy-cluster stun`: the server for development and small use, and the operator's keys."""

from __future__ import annotations

import functools
import logging.config
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

import click

from stun_server.settings import (
    CLUSTER_ID,
    CLUSTER_ID_FORM,
    KEY,
    KEY_FORM,
    RegistrySettings,
    SettingsError,
    current_settings,
)

if TYPE_CHECKING:
    from stun_server.store import AuditEvent, ClusterKey, Store

    Change = Callable[[tuple[ClusterKey, ...]], tuple[ClusterKey, ...]]

DEFAULT_OVERLAP_HOURS = 24.0
CommandT = TypeVar("CommandT", bound=Callable[..., None])


@click.group()
def stun() -> None:
    """The rendezvous server, where instances find each other over the internet.

    It is set by STUN_* variables, as under gunicorn; docs/stun-api.md lists them.
    """


def _tells_errors(command: CommandT) -> CommandT:
    """What a user can mend is a line of text; all else is a bug and keeps its traceback."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        from stun_server.binding.responder import CannotListen
        from stun_server.store import StoreUnavailable

        try:
            command(*args, **kwargs)
        except (SettingsError, StoreUnavailable, CannotListen) as error:
            raise click.ClickException(str(error)) from error

    return run  # type: ignore[return-value]


@stun.command()
@_tells_errors
def serve() -> None:
    """Run the server in this terminal, in one process.

    \b
    For production:
        gunicorn -c python:stun_server.gunicorn_conf stun_server.wsgi:app
    """
    from werkzeug.serving import make_server

    from stun_server.app import create_app
    from stun_server.logs import logging_config
    from stun_server.service import Service
    from stun_server.store import open_store

    settings = current_settings()
    logging.config.dictConfig(logging_config(settings.log_level))
    service = Service(settings, open_store(settings.store))
    service.resume()
    _check_port(settings)
    server = make_server(settings.host, settings.port, create_app(service=service), threaded=True)
    service.start(with_binding=True)

    def stop(number: int, frame: FrameType | None) -> None:
        service.drain()
        threading.Thread(target=server.shutdown, daemon=True).start()  # it waits for the loop

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    click.echo(_where(settings), err=True)
    server.serve_forever()
    server.server_close()
    service.close()


def _check_port(settings: RegistrySettings) -> None:
    """werkzeug prints a text of its own and ends the program."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        raise click.ClickException(
            f"Cannot listen at {settings.host} port {settings.port}: {error.strerror or error}. "
            "End the program that does, or set STUN_SERVER_HOST and STUN_SERVER_PORT"
        ) from error


def _where(settings: RegistrySettings) -> str:
    name = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host
    name = f"[{name}]" if ":" in name else name
    udp = "" if settings.udp_port is None else f", STUN at UDP port {settings.udp_port}"
    return f"Rendezvous server at http://{name}:{settings.port}{udp}; Ctrl+C ends it"


@stun.group()
def keys() -> None:
    """The clusters' keys in the store that STUN_STORE names. Only their hashes are kept."""


def _cluster_id(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not CLUSTER_ID.fullmatch(value):
        raise click.BadParameter(f"expected {CLUSTER_ID_FORM}")
    return value


def _key(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    if value == "-":
        value = sys.stdin.readline().strip()
    if value is None:
        return secrets.token_urlsafe(32)
    if not KEY.fullmatch(value):
        raise click.BadParameter(f"expected {KEY_FORM}")
    return value


_CLUSTER = click.argument("cluster_id", callback=_cluster_id)
_KEY = click.option(
    "--key",
    callback=_key,
    help="The key; - reads it from standard input, where it stays out of the shell's history.  "
    "[default: a random one, which is printed]",
)


@keys.command("list")
@click.argument("cluster_id", callback=_cluster_id)
@_tells_errors
def list_keys(cluster_id: str) -> None:
    """The fingerprints of a cluster's keys."""
    from stun_server.keys import fingerprint

    found = _valid(_open().keys(cluster_id))
    if not found:
        raise click.ClickException(f"Cluster {cluster_id!r} has no key in this store")
    for key in found:
        ends = "" if key.expires_at is None else f", ends {_moment(key.expires_at)}"
        origin = "the operator" if key.is_operators else "its first registration"
        click.echo(f"{fingerprint(key.key_hash)}  {_moment(key.created_at)} by {origin}{ends}")


@keys.command()
@_CLUSTER
@_KEY
@_tells_errors
def add(cluster_id: str, key: str) -> None:
    """Give a new cluster its key, before its first registration."""

    def change(held: tuple[ClusterKey, ...]) -> tuple[ClusterKey, ...]:
        if _valid(held):
            raise click.ClickException(
                f"Cluster {cluster_id!r} has a key: `comfy-cluster stun keys rotate` changes it"
            )
        return (_new_key(key),)

    _change(cluster_id, change, "key-add", key)
    click.echo(key)


@keys.command()
@_CLUSTER
@_KEY
@click.option(
    "--overlap-hours",
    type=click.FloatRange(0, 24 * 365),
    default=DEFAULT_OVERLAP_HOURS,
    show_default=True,
    help="For how long the present key is good as well.",
)
@_tells_errors
def rotate(cluster_id: str, key: str, overlap_hours: float) -> None:
    """Give a cluster a new key; the present one is good for a while, so that nobody is locked out.

    Of older ones none is. Give the instances the new key within that time.
    """
    from dataclasses import replace

    from stun_server.keys import hash_of

    ends_at = time.time() + overlap_hours * 3600

    def change(held: tuple[ClusterKey, ...]) -> tuple[ClusterKey, ...]:
        valid = _valid(held)
        if not valid:
            raise click.ClickException(
                f"Cluster {cluster_id!r} has no key in this store: `comfy-cluster stun keys add` "
                "gives it one"
            )
        if any(each.key_hash == hash_of(key) for each in valid):
            raise click.ClickException("That is a key of the cluster already")
        # One that ends, where the one behind it was taken away, does not get longer by this.
        present = min(valid, key=lambda each: each.expires_at is not None)
        ends = min(ends_at, present.expires_at or ends_at)
        ending = () if not overlap_hours else (replace(present, expires_at=ends),)
        return (_new_key(key), *ending)

    _change(cluster_id, change, "key-rotate", key)
    click.echo(key)


@keys.command()
@_CLUSTER
@click.option("--fingerprint", "wanted", help="Of one key only, as `list` shows it.")
@_tells_errors
def remove(cluster_id: str, wanted: str | None) -> None:
    """Take a cluster's keys away: nobody sees or changes it any more.

    With the last one go its registrations and its audit log; a line on standard error tells of it.
    Where registration is open, the next one to register under this id gives it a new key.
    """
    from stun_server.keys import fingerprint

    def change(held: tuple[ClusterKey, ...]) -> tuple[ClusterKey, ...]:
        kept = tuple(each for each in held if wanted and fingerprint(each.key_hash) != wanted)
        if kept == held:
            raise click.ClickException(f"Cluster {cluster_id!r} has no such key in this store")
        return kept

    _change(cluster_id, change, "key-remove")


def _open() -> Store:
    from stun_server.store import open_store

    return open_store(current_settings().store)


def _valid(keys: tuple[ClusterKey, ...]) -> tuple[ClusterKey, ...]:
    """Those that have not ended, the newest first; who counts the others is sent in circles."""
    now = time.time()
    return tuple(key for key in keys if key.is_valid(now))


def _new_key(key: str) -> ClusterKey:
    from stun_server.keys import hash_of
    from stun_server.store import ClusterKey

    return ClusterKey(hash_of(key), time.time(), None, True)


def _change(cluster_id: str, change: Change, name: str, key: str = "") -> None:
    from stun_server.keys import fingerprint, hash_of
    from stun_server.store import AuditEvent

    settings = current_settings()
    if cluster_id in settings.cluster_keys:
        raise click.ClickException(
            f"The key of cluster {cluster_id!r} is in STUN_CLUSTER_KEYS or its file, which hold: "
            "change it there, and send gunicorn SIGHUP"
        )
    store = _open()
    event = AuditEvent(
        at=time.time(),
        event=name,
        cluster_id=cluster_id,
        key_fingerprint=fingerprint(hash_of(key)) if key else "",
        detail="by the operator",
    )
    try:
        kept = store.change_keys(cluster_id, change, event)
    finally:
        store.close()
    if not kept:
        _log(event)


def _log(event: AuditEvent) -> None:
    """What the store keeps no more of, as the server logs it."""
    from stun_server.logs import audit_logger, json_formatter

    to_terminal = logging.StreamHandler()
    to_terminal.setFormatter(json_formatter())
    audit_logger.addHandler(to_terminal)
    try:
        extra = {"cluster_id": event.cluster_id, "detail": event.detail}
        audit_logger.warning(event.event, extra=extra)
    finally:
        audit_logger.removeHandler(to_terminal)


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
