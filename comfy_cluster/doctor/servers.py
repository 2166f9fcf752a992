"""Does each rendezvous server answer, take the key, and have the same time?"""

from __future__ import annotations

from collections.abc import Callable

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery.registry import NotRegistered, Registry
from comfy_cluster.doctor.findings import Finding, Layer, failure, ok, warning
from comfy_cluster.errors import DiscoveryError, RegistrationRefused


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
    return [finding for url in config.stun_servers for finding in _check_server(make(url))]


def _check_server(registry: Registry) -> list[Finding]:
    try:
        finding = _ask(registry)
        clock = registry.clock_text
    finally:
        registry.close()
    if not clock:
        return [finding]
    advice = ["set the clock, on Linux: sudo timedatectl set-ntp true"]
    return [finding, warning(Layer.CLOCK, registry.url, clock, advice=advice)]


def _ask(registry: Registry) -> Finding:
    try:
        listing = registry.instances()
    except NotRegistered:
        return ok(Layer.SERVER, registry.url, "answers; this cluster is not registered there yet")
    except RegistrationRefused as error:
        return failure(
            Layer.SERVER,
            registry.url,
            str(error),
            advice=[
                "set the same COMFY_CLUSTER_KEY and COMFY_CLUSTER_CLUSTER_ID everywhere",
                "a cluster that no instance has registered yet is refused alike: start one first",
                "a cluster whose key is lost needs another COMFY_CLUSTER_CLUSTER_ID",
            ],
        )
    except DiscoveryError as error:
        return failure(
            Layer.SERVER,
            registry.url,
            str(error),
            advice=[f"look from here: curl -v {registry.url}/health"],
        )
    instances = listing.instances if listing else ()
    there = ", ".join(map(str, sorted(each.instance_index for each in instances))) or "nobody"
    return ok(Layer.SERVER, registry.url, f"answers and takes the key; registered: {there}")
