"""The composition root: the one place where settings become a running cluster.

`build_cluster` puts the layers together; `get_cluster` is the cluster of this process, made from
the environment when it is first asked for and closed at exit. Used by nodes/ and cli/.
"""

from __future__ import annotations

import atexit
import os
import threading

from comfy_cluster.cluster import Cluster
from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery import Discovery, StaticDiscovery
from comfy_cluster.discovery.static import resolve_ipv4, resolve_ipv6
from comfy_cluster.errors import DiscoveryError

_lock = threading.Lock()
_cluster: Cluster | None = None


def build_cluster(config: ClusterConfig) -> Cluster:
    """A cluster that is not started yet. DiscoveryError: its registration mode does not exist."""
    if config.is_single:
        return Cluster(config)
    from comfy_cluster import fastpath
    from comfy_cluster.transport.transport import Transport

    return Cluster(
        config, Transport(config), build_discovery(config), engine_name=fastpath.ENGINE_NAME
    )


def build_discovery(config: ClusterConfig) -> Discovery:
    """How this instance finds the others."""
    if config.registration_mode is not RegistrationMode.STATIC:
        raise DiscoveryError(
            f"COMFY_CLUSTER_REGISTRATION_MODE={config.registration_mode} is not part of this "
            "version: set it to static, and COMFY_CLUSTER_UDP_HOSTNAMES to every instance's "
            "host:port"
        )
    resolve = resolve_ipv6 if ":" in config.listen_address else resolve_ipv4
    return StaticDiscovery(config.udp_hostnames, config.instance_index, resolve=resolve)


def get_cluster() -> Cluster:
    """The started cluster of this process; a cluster of one where no setting is given.

    The first call reads the environment and may raise ConfigError, or what `Cluster.start` raises;
    the next call then tries again.
    """
    global _cluster
    with _lock:
        if _cluster is None:
            cluster = build_cluster(ClusterConfig.from_env(os.environ))
            cluster.start()
            atexit.register(cluster.close)
            _cluster = cluster
        return _cluster


def close_cluster() -> None:
    """Closes the cluster of this process, if there is one; `get_cluster` then makes a new one."""
    global _cluster
    with _lock:
        cluster, _cluster = _cluster, None
    if cluster is not None:
        atexit.unregister(cluster.close)
        cluster.close()
