"""Do the names in the settings stand for addresses, and is the own one of this machine?"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery.interfaces import own_addresses
from comfy_cluster.discovery.own_address import own_hostname
from comfy_cluster.discovery.static import Resolver, resolve_ipv4, resolve_ipv6
from comfy_cluster.doctor.findings import Finding, Layer, failure, ok, warning

LARGEST_POOL = 32  # lookups at a time; a silent name server holds each for seconds


@dataclass(frozen=True, slots=True)
class Name:
    """A name in the settings, and where it stands."""

    hostname: str
    port: int
    origin: str
    is_own: bool = False
    """It is to stand for this machine."""


@dataclass(frozen=True, slots=True)
class LookedUp:
    name: Name
    literal: str | None
    reason: str = ""
    """Why there is none."""


def names_of(config: ClusterConfig) -> Iterator[Name]:
    """All names of the settings that this mode uses, IP literals included."""
    if config.registration_mode is RegistrationMode.STATIC:
        for index, (hostname, port) in enumerate(config.udp_hostnames):
            origin = f"entry {index} of COMFY_CLUSTER_UDP_HOSTNAMES"
            yield Name(hostname, port, origin, is_own=index == config.instance_index)
        return
    if config.registration_mode is RegistrationMode.STUN:
        for url in config.stun_servers:
            yield Name(urlsplit(url).hostname or "", 0, "COMFY_CLUSTER_STUN_SERVER")
    if config.instance_address is not None:
        port = config.direct_listen_port
        yield Name(config.instance_address, port, "COMFY_CLUSTER_INSTANCE_ADDRESS", is_own=True)
    elif config.registration_mode is RegistrationMode.STUN:
        pod_name = own_hostname(config, (), towards=lambda _: None)
        if pod_name is not None and config.runpod_pod_id is not None:
            yield Name(pod_name, config.direct_listen_port, "the pod's name at RunPod", is_own=True)


def look_up(config: ClusterConfig, *, resolve: Resolver | None = None) -> list[LookedUp]:
    """All names at a time; blocks for as long as the slowest name server."""
    names = list(names_of(config))
    if not names:
        return []
    chosen = resolve or (resolve_ipv6 if ":" in config.listen_address else resolve_ipv4)
    with ThreadPoolExecutor(min(len(names), LARGEST_POOL)) as pool:
        return list(pool.map(lambda name: _look_up(name, chosen), names))


def _look_up(name: Name, resolve: Callable[[str, int], tuple[str, int]]) -> LookedUp:
    try:
        return LookedUp(name, resolve(name.hostname, name.port)[0])
    except OSError as error:
        return LookedUp(name, None, error.strerror or str(error))
    except UnicodeError as error:  # of IDNA: a label that is empty or too long
        return LookedUp(name, None, str(error))


def check_names(
    looked_up: Sequence[LookedUp], *, own: Callable[[], Collection[str]] = own_addresses
) -> list[Finding]:
    return [_check_name(each, own) for each in looked_up]


def _check_name(looked_up: LookedUp, own: Callable[[], Collection[str]]) -> Finding:
    name, literal = looked_up.name, looked_up.literal
    if literal is None:
        return failure(
            Layer.NAME,
            name.hostname,
            f"{name.origin}: {name.hostname} has no address: {looked_up.reason}",
            advice=[
                f"check the spelling and the name server: getent ahosts {name.hostname}",
                "or use an IP address; only IPv4 counts, unless COMFY_CLUSTER_LISTEN_ADDRESS=::",
            ],
        )
    is_literal = literal == name.hostname
    shown = literal if is_literal else f"{name.hostname} is {literal}"
    if name.is_own and literal not in own() and not ipaddress.ip_address(literal).is_loopback:
        return warning(
            Layer.NAME,
            name.hostname,
            f"{name.origin} is this instance, and {shown} is no address of this machine",
            advice=[
                "right behind NAT or a container's port mapping; else COMFY_CLUSTER_INSTANCE_INDEX "
                "or the order of the addresses is wrong here"
            ],
        )
    return ok(Layer.NAME, name.hostname, f"{name.origin}: {shown}")
