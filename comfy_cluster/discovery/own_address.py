"""By which address the others reach this instance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from comfy_cluster.config import ClusterConfig
from comfy_cluster.discovery.interfaces import address_towards

LOOPBACK = "127.0.0.1"
_RUNPOD_NAME = "{pod_id}.runpod.internal"


def own_hostname(
    config: ClusterConfig,
    destinations: Sequence[tuple[str, int]],
    *,
    towards: Callable[[Sequence[tuple[str, int]]], str | None] = address_towards,
) -> str | None:
    """A name or IP literal; None: no interface routes to any of `destinations`, best first.

    INSTANCE_ADDRESS, else the name that RunPod gives a pod, else the address of the interface that
    routes there. With SINGLE_HOST nobody is elsewhere.
    """
    if config.instance_address is not None:
        return config.instance_address
    if config.single_host:
        return LOOPBACK
    if config.runpod_pod_id is not None:
        return _RUNPOD_NAME.format(pod_id=config.runpod_pod_id)
    return towards(destinations)
