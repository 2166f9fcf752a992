"""By which address the others reach this instance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from comfy_cluster.config import ClusterConfig
from comfy_cluster.discovery.interfaces import address_towards, broadcast_interfaces

LOOPBACK = "127.0.0.1"
WILDCARDS = ("0.0.0.0", "::")
_RUNPOD_NAME = "{pod_id}.runpod.internal"


def own_hostname(
    config: ClusterConfig,
    destinations: Sequence[tuple[str, int]],
    *,
    towards: Callable[[Sequence[tuple[str, int]]], str | None] = address_towards,
) -> str | None:
    """A name or IP literal; None: no interface routes to any of `destinations`, best first.

    INSTANCE_ADDRESS, else the one address that is listened at; with SINGLE_HOST loopback; else the
    name that RunPod gives a pod, else the address of the interface that routes there.
    """
    if config.instance_address is not None:
        return config.instance_address
    if config.listen_address not in WILDCARDS:
        return config.listen_address
    if config.single_host:
        return LOOPBACK
    if config.runpod_pod_id is not None:
        return _RUNPOD_NAME.format(pod_id=config.runpod_pod_id)
    # A socket that listens for IPv4 alone is reached by that alone.
    serves_ipv6 = config.listen_address == "::"
    found = towards([each for each in destinations if serves_ipv6 or ":" not in each[0]])
    if found is None and not serves_ipv6:  # the server is reached by IPv6, the peers are not
        found = next((each.address for each in broadcast_interfaces()), None)
    return found
