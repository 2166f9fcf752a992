"""Does each rendezvous server answer, take the key, and have the same time?

And is this instance registered from elsewhere? The doctor registers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery.base import address_text
from comfy_cluster.discovery.interfaces import own_addresses
from comfy_cluster.discovery.own_address import own_hostname
from comfy_cluster.discovery.registry import KeyRefused, Listed, NotRegistered, Registry
from comfy_cluster.doctor.findings import Finding, Layer, failure, ok, warning
from comfy_cluster.errors import DiscoveryError

_START = "start the leader first, or any other instance: it registers the cluster"


def check_servers(
    config: ClusterConfig, *, make_registry: Callable[[str], Registry] | None = None
) -> list[Finding]:
    """Asks each server once who is there. Blocks for seconds at most."""
    if config.registration_mode is not RegistrationMode.STUN:
        return []

    def registry_at(url: str) -> Registry:
        assert config.key is not None  # the settings of this mode have one
        return Registry(url, cluster_id=config.cluster_id, key=config.key)

    make = make_registry or registry_at
    findings: list[Finding] = []
    others: dict[str, Listed] = {}
    for url in config.stun_servers:
        found, instances = _check_server(make(url))
        findings += found
        others.update((url, each) for each in instances if _is_other(each, config))
    return [*findings, *_registered_elsewhere(others)]


def is_held(findings: Iterable[Finding]) -> bool:
    """Whether one of `check_servers` is that this instance is registered from elsewhere."""
    return any(each.layer is Layer.DISCOVERY for each in findings)


def _check_server(registry: Registry) -> tuple[list[Finding], tuple[Listed, ...]]:
    """Also who is registered there."""
    try:
        finding, instances = _ask(registry)
        clock = registry.clock_text
    finally:
        registry.close()
    if not clock:
        return [finding], instances
    advice = ["set the clock, on Linux: sudo timedatectl set-ntp true"]
    return [finding, warning(Layer.CLOCK, registry.url, clock, advice=advice)], instances


def _ask(registry: Registry) -> tuple[Finding, tuple[Listed, ...]]:
    try:
        listing = registry.instances()
    except DiscoveryError as error:
        return _refusal(registry, error), ()
    instances = listing.instances if listing else ()
    there = ", ".join(map(str, sorted(each.instance_index for each in instances))) or "nobody"
    text = f"answers and takes the key; registered: {there}"
    return ok(Layer.SERVER, registry.url, text), instances


def _refusal(registry: Registry, error: DiscoveryError) -> Finding:
    if isinstance(error, NotRegistered):
        return warning(Layer.SERVER, registry.url, str(error), advice=[_START])
    advice = [f"look from here: curl -v {registry.url}/health"]
    if isinstance(error, KeyRefused):
        advice = [
            _START,
            "set the same COMFY_CLUSTER_KEY and COMFY_CLUSTER_CLUSTER_ID everywhere",
            "a cluster whose key is lost needs another COMFY_CLUSTER_CLUSTER_ID",
        ]
    return failure(Layer.SERVER, registry.url, str(error), advice=advice)


def _is_other(listed: Listed, config: ClusterConfig) -> bool:
    """Whether it has the index of this instance, and another place."""
    if listed.instance_index != config.instance_index:
        return False
    here = {own_hostname(config, ()), *own_addresses()}
    return listed.hostname not in here or listed.port != config.direct_listen_port


def _registered_elsewhere(others: Mapping[str, Listed]) -> list[Finding]:
    """Of all servers together: the others take no second one for the instance that they have."""
    if not others:
        return []
    places = {address_text((each.hostname, each.port)) for each in others.values()}
    index = next(iter(others.values())).instance_index
    return [
        failure(
            Layer.DISCOVERY,
            "this instance",
            f"instance {index} is registered from {', '.join(sorted(places))}, which is not here, "
            f"at {', '.join(others)}: the others answer nobody else in its place",
            advice=[
                "if that is another one: give each a COMFY_CLUSTER_INSTANCE_INDEX of its own",
                "if it has ended, it is forgotten within a minute or so: ask again then",
            ],
        )
    ]
