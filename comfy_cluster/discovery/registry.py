"""One rendezvous server, as an instance asks it: one method for each route.

The richer routes below `/v1` are tried first (docs/stun-api.md); a server that has none is asked by
those of spec.md section 9, which know no runs of an instance and no candidates.
Blocks for a bounded time, keeps no state but the HTTP connection, and retries nothing: `stun.py`
does. Every failure is a DiscoveryError whose text begins with `Failed to register with STUN server`
where it is about registering, and says what to do.
"""

from __future__ import annotations

import email.utils
import ipaddress
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import requests

from comfy_cluster.config import Role
from comfy_cluster.discovery.candidates import Candidate
from comfy_cluster.discovery.exchanges import (
    LARGEST_ANSWER,
    Answer,
    AnswerTooLarge,
    Exchanges,
)
from comfy_cluster.errors import DiscoveryError, RegistrationRefused, RegistryUnavailable

logger = logging.getLogger("comfy_cluster.discovery")

T = TypeVar("T")

# Seconds for all of an answer, beyond those that the server was asked to wait.
ANSWER_TIMEOUT = 10.0
# Seconds between heartbeats, whatever a server asks for.
SHORTEST_INTERVAL, LONGEST_INTERVAL = 0.1, 300.0
LARGEST_WAIT = 25.0  # seconds that a server is asked to hold a list until it changes
CLOCK_TOLERANCE = 30.0  # seconds; the Date header and the way here make up for less
_KEY_HEADER = "X-Cluster-Key"
# OpenSSL's <openssl/x509_vfy.h>: X509_V_ERR_CERT_NOT_YET_VALID and _CERT_HAS_EXPIRED.
_CLOCK_ERRORS = (9, 10)
# What servers without a route answer, and the codes of the richer routes' refusals.
_RICH_ROUTES = "/v1/"
_NO_ROUTE = (404, 405, 501)
_NOT_REGISTERED = "not_registered"
_FULL = "full"
_HELD = "instance_held"
_NO_CLUSTER = "no instance has registered it there yet"
_ERROR_NUMBER = re.compile(r"^\[Errno -?\d+\] ")


class NotRegistered(DiscoveryError):
    """The server does not know this instance any more: its time ran out, or the server lost it."""


class KeyRefused(RegistrationRefused):
    """The key is wrong. Or, where instances are asked for, nobody has registered the cluster yet:
    a server need not tell which."""


class IndexTaken(RegistrationRefused):
    """Another live instance has this index."""


class IndexHeld(RegistrationRefused):
    """An instance elsewhere has this index, and may have ended or not."""

    def __init__(self, text: str, last_ping: str) -> None:
        super().__init__(text)
        self.last_ping = last_ping
        """When its last heartbeat came, in the server's words; another one: it lives."""


class _NoSuchRoute(DiscoveryError):
    """The server is one without the richer routes."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What an instance tells of itself."""

    cluster_id: str
    instance_index: int
    hostname: str
    """Name or IP literal by which the others reach it."""
    port: int
    role: Role
    boot_id: str
    """Names this run: a later run of the instance takes the registration over."""
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """An instance of the cluster, as the server knows it."""

    instance_index: int
    hostname: str
    port: int


@dataclass(frozen=True, slots=True)
class Registered:
    """What a server grants."""

    instances: tuple[Listed, ...]
    heartbeat_interval: float | None = None
    """Seconds; None: the server does not say."""
    stun_port: int | None = None
    """UDP port of the STUN responder beside it; None: it tells of none."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The instances of a cluster at one moment."""

    instances: tuple[Listed, ...]
    revision: str = ""
    """The ETag: the server can be asked to answer once it has changed. Empty: it cannot."""


class Registry:
    """`url` without a trailing slash. Used by one thread; only `interrupt` is for others."""

    def __init__(self, url: str, *, cluster_id: str, key: str) -> None:
        self.url = url
        self._cluster_id = cluster_id
        self._key = key
        self._exchanges = Exchanges()
        self._session = self._exchanges.session
        self._session.headers[_KEY_HEADER] = key
        self._session.headers["Accept-Encoding"] = "identity"  # what is unpacked has no bound
        self._session.auth = _no_auth  # else requests looks into ~/.netrc
        self._proxies = {"no_proxy": "*"} if _is_near(url) else None
        self._clock_text = ""
        self._is_old = False
        self._boot_id = ""

    @property
    def clock_text(self) -> str:
        """How far this machine's clock is from the server's, if that is too far; else empty."""
        return self._clock_text

    def register(self, registration: Registration) -> Registered:
        """Registers, or renews that.

        IndexTaken: a later run of the instance has. IndexHeld: another one may live elsewhere.
        """
        self._boot_id = registration.boot_id
        # Servers are updated, and a proxy in front may have had none behind it.
        self._is_old = False
        try:
            return self._either(
                lambda: self._register(registration), lambda: self._register_old(registration)
            )
        except DiscoveryError as error:
            error.args = (f"Failed to register with STUN server: {error}",)
            raise

    def _register(self, registration: Registration) -> Registered:
        body = {
            "boot_id": registration.boot_id,
            "address": registration.hostname,
            "port": registration.port,
            "role": str(registration.role),
            "candidates": [asdict(each) for each in registration.candidates],
            "take_over": False,
        }
        told = _json(self._ask("PUT", self._instance_path(registration.instance_index), json=body))
        told = told if isinstance(told, dict) else {}
        interval, stun = told.get("heartbeat_interval_s"), told.get("stun")
        stun_port = stun.get("port") if isinstance(stun, dict) else None
        return Registered(
            tuple(_listed(told.get("cluster"))),
            _bounded(interval) if isinstance(interval, int | float) and interval > 0 else None,
            stun_port if isinstance(stun_port, int) and 0 < stun_port <= 65_535 else None,
        )

    def _register_old(self, registration: Registration) -> Registered:
        body = {
            "cluster_id": registration.cluster_id,
            "instance_id": str(registration.instance_index),
            "address": registration.hostname,
            "port": registration.port,
            "role": str(registration.role),
        }
        try:
            answer = self._ask("POST", "/register-instance", json=body)
        except NotRegistered as error:  # a rendezvous server of any kind has this route
            raise RegistrationRefused(
                f"{self.url} has no rendezvous server's routes: check COMFY_CLUSTER_STUN_SERVER"
            ) from error
        return Registered(tuple(_listed(_json(answer))))

    def instances(self, revision: str = "", *, wait: float = 0.0) -> Listing | None:
        """The instances that are there; None: after `wait` seconds they are those of `revision`.

        NotRegistered: nobody has registered the cluster. KeyRefused: perhaps neither.
        """
        cluster = quote(self._cluster_id, safe="")
        try:
            return self._either(
                lambda: self._instances(f"/v1/clusters/{cluster}", revision, wait),
                lambda: self._instances(f"/instances/{cluster}", revision, wait),
            )
        except NotRegistered as error:
            error.args = (f"{self.url} knows no cluster {self._cluster_id!r}: {_NO_CLUSTER}",)
            raise
        except KeyRefused as error:
            error.args = (f"{error}; or {_NO_CLUSTER}",)
            raise

    def _instances(self, path: str, revision: str, wait: float) -> Listing | None:
        can_wait = bool(revision) and wait > 0
        answer = self._ask(
            "GET",
            path,
            params={"wait": f"{wait:g}"} if can_wait else None,
            headers={"If-None-Match": revision} if revision else None,
            wait=wait if can_wait else 0.0,
        )
        if answer.status == requests.codes.not_modified:
            return None
        return Listing(tuple(_listed(_json(answer))), answer.headers.get("ETag", ""))

    def heartbeat(self, instance_index: int) -> None:
        """NotRegistered: register again. IndexTaken: a later run of the instance has."""
        if self._is_old:
            cluster = quote(self._cluster_id, safe="")
            self._ask("POST", f"/heartbeat/{cluster}/{instance_index}")
        else:
            path = self._instance_path(instance_index) + "/heartbeat"
            try:
                self._ask("POST", path, params={"boot_id": self._boot_id})
            except _NoSuchRoute as error:  # it is another server by now
                raise NotRegistered(str(error)) from error

    def leave(self, instance_index: int, *, timeout: float) -> None:
        """Says goodbye, within `timeout` seconds or not at all."""
        try:
            if self._is_old:
                cluster = quote(self._cluster_id, safe="")
                self._exchange("DELETE", f"/instance/{cluster}/{instance_index}", timeout=timeout)
            else:
                path = self._instance_path(instance_index)
                params = {"boot_id": self._boot_id}
                self._exchange("DELETE", path, params=params, timeout=timeout)
        except requests.RequestException as error:
            logger.debug("! %s was not told that this instance leaves: %s", self.url, error)

    def successor(self) -> Registry:
        """Another connection to the same server, which knows what this one has learned of it."""
        other = Registry(self.url, cluster_id=self._cluster_id, key=self._key)
        other._is_old, other._boot_id = self._is_old, self._boot_id
        return other

    def _instance_path(self, instance_index: int) -> str:
        return f"/v1/clusters/{quote(self._cluster_id, safe='')}/instances/{instance_index}"

    def _either(self, ask: Callable[[], T], ask_old: Callable[[], T]) -> T:
        """By the richer routes, unless the server has none."""
        if not self._is_old:
            try:
                return ask()
            except _NoSuchRoute:
                pass
        answer = ask_old()
        self._is_old = True
        return answer

    def interrupt(self) -> None:
        """From any thread: what is asked, or would be, fails at once."""
        self._exchanges.interrupt()

    def close(self) -> None:
        """Closes the connection."""
        self._exchanges.close()

    def _exchange(self, method: str, path: str, *, timeout: float, **options: Any) -> Answer:
        return self._exchanges.ask(
            method,
            self.url + path,
            timeout=timeout,
            # On every call: environment variables would win over the session's.
            verify=self._verify(),
            proxies=self._proxies,
            **options,
        )

    def _ask(self, method: str, path: str, *, wait: float = 0.0, **options: Any) -> Answer:
        try:
            answer = self._exchange(method, path, timeout=ANSWER_TIMEOUT + wait, **options)
        except AnswerTooLarge as error:
            raise RegistryUnavailable(
                f"{self.url} answers {method} {path} with more than {LARGEST_ANSWER >> 20} MiB, "
                "which no list of instances has: check that COMFY_CLUSTER_STUN_SERVER names the "
                "rendezvous server, and what stands between"
            ) from error
        except requests.exceptions.SSLError as error:
            raise RegistryUnavailable(f"{self.url}: {_tls_text(error)}") from error
        except requests.exceptions.ProxyError as error:
            raise RegistryUnavailable(
                f"{self.url} cannot be reached by the proxy of this environment ({_reason(error)}):"
                " set NO_PROXY to the server's name, or mend HTTP_PROXY and HTTPS_PROXY"
            ) from error
        except requests.exceptions.Timeout as error:
            raise RegistryUnavailable(
                f"{self.url} does not answer in time: is it running, and does a firewall let TCP "
                "through?"
            ) from error
        except requests.RequestException as error:
            raise RegistryUnavailable(
                f"{self.url} cannot be reached ({_reason(error)}): check COMFY_CLUSTER_STUN_SERVER "
                "and that the server is running"
            ) from error
        self._compare_clocks(answer)
        is_rich = path.startswith(_RICH_ROUTES)
        if (
            is_rich
            and answer.status in _NO_ROUTE
            and _object(answer).get("code") != _NOT_REGISTERED
        ):
            raise _NoSuchRoute(f"{self.url} answers {answer.status}: {_told(answer)}")
        return self._checked(answer)

    def _verify(self) -> Any:
        merged = self._session.merge_environment_settings(self.url, {}, None, None, None)
        return merged["verify"]

    def _checked(self, answer: Answer) -> Answer:
        status = answer.status
        if status in (requests.codes.ok, requests.codes.created, requests.codes.not_modified):
            return answer
        told, refusal = _told(answer), _object(answer)
        code = refusal.get("code")
        if 300 <= status < 400:
            route = answer.url.removeprefix(self.url)
            target = answer.headers.get("Location", "nowhere").partition("?")[0]
            raise RegistrationRefused(
                f"{self.url} redirects to {ascii(target.removesuffix(route))[:200]}: set "
                "COMFY_CLUSTER_STUN_SERVER to that, if the rendezvous server is there"
            )
        if code == _FULL:
            raise RegistrationRefused(f"{self.url}: {told}")
        is_key = status in (requests.codes.unauthorized, requests.codes.forbidden)
        if is_key and _is_json(answer):
            raise KeyRefused(
                f"{self.url} refuses the key of cluster {self._cluster_id!r} ({told}): "
                "COMFY_CLUSTER_KEY must be the one that the cluster was first registered with"
            )
        if status in (requests.codes.not_found, requests.codes.gone):
            raise NotRegistered(f"{self.url} does not know this instance ({told})")
        if code == _HELD:
            holder = refusal.get("holder")
            last_ping = holder.get("last_ping", "") if isinstance(holder, dict) else ""
            raise IndexHeld(f"{self.url}: {told}", str(last_ping))
        if status == requests.codes.conflict:
            raise IndexTaken(f"{self.url}: {told}")
        if status >= requests.codes.server_error or status == requests.codes.too_many_requests:
            raise RegistryUnavailable(f"{self.url} answers {status}: {told}")
        raise RegistrationRefused(
            f"{self.url} answers {status}: {told}. Is that the rendezvous server of this version?"
        )

    def _compare_clocks(self, answer: Answer) -> None:
        try:
            told = email.utils.parsedate_to_datetime(answer.headers.get("Date", ""))
        except ValueError:  # it has no clock, or hides it
            return
        ahead = time.time() - told.timestamp()
        is_off = abs(ahead) > CLOCK_TOLERANCE
        relation = "ahead of" if ahead > 0 else "behind"
        text = (
            f"the clock of this machine is {abs(ahead):.0f} s {relation} that of {self.url}: set "
            "one of them (NTP)"
        )
        if is_off and not self._clock_text:
            logger.warning("! %s", text)
        self._clock_text = text if is_off else ""


def _no_auth(request: Any) -> Any:
    return request


def _is_near(url: str) -> bool:
    """Whether a server is on this machine or in its network, where no proxy leads."""
    hostname = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:
        return hostname == "localhost"
    return address.is_loopback or address.is_private or address.is_link_local


def _json(answer: Answer) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise RegistrationRefused(
            f"{answer.url} does not answer with JSON: is that the rendezvous server?"
        ) from error


def _listed(body: Any) -> Iterator[Listed]:
    """Those of a server's list that make sense."""
    entries = body.get("instances") if isinstance(body, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        try:
            index, port = int(entry["instance_id"]), int(entry["port"])
            hostname = str(entry["address"])
        except (KeyError, TypeError, ValueError, OverflowError):
            logger.debug("! a registration that makes no sense: %.200r", entry)
            continue
        if index >= 0 and 0 < port <= 65_535 and hostname:
            yield Listed(index, hostname, port)


def _bounded(interval: float) -> float:
    return float(min(max(interval, SHORTEST_INTERVAL), LONGEST_INTERVAL))


def _is_json(answer: Answer) -> bool:
    """The server's own answers are; a proxy's are pages."""
    return "json" in answer.headers.get("Content-Type", "")


def _object(answer: Answer) -> dict[str, Any]:
    """The JSON of an answer; empty: it is none."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _told(answer: Answer) -> str:
    """What a server says that is wrong."""
    body = _object(answer)
    for name in ("message", "error", "detail"):
        if isinstance(body.get(name), str):
            return str(body[name])[:300]
    return (answer.reason or "no reason given")[:200]


def _tls_text(error: requests.exceptions.SSLError) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        reason = getattr(cause, "reason", None)
        cause = (
            reason if isinstance(reason, BaseException) else (cause.__cause__ or cause.__context__)
        )
    if cause is None:
        return f"TLS fails ({_reason(error)}): is it an https:// server?"
    if cause.verify_code in _CLOCK_ERRORS:
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        return (
            f"its certificate is not valid now ({cause.verify_message}). This machine's clock says "
            f"{now}: set it if that is wrong, else renew the certificate"
        )
    return (
        f"its certificate is not trusted ({cause.verify_message}): use one that is, or name its "
        "authority's file in REQUESTS_CA_BUNDLE"
    )


def _reason(error: BaseException) -> str:
    """The innermost reason of a chain of wrapped errors."""
    inner: BaseException = error
    while True:
        reason = getattr(inner, "reason", None)
        if not isinstance(reason, BaseException):
            reason = next((each for each in inner.args if isinstance(each, BaseException)), None)
        if reason is None or reason is inner:
            break
        inner = reason
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    text = str(inner).rpartition(": ")[2]
    return _ERROR_NUMBER.sub("", text)[:200] or type(inner).__name__
