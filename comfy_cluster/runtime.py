"""The composition root: the one place where settings become a running cluster.

`build_cluster` puts the layers together; `get_cluster` is the cluster of this process, made from
the environment when it is first asked for and closed at exit; `get_work` is what a
ComfyUI process does for it. Used by nodes/, extension and cli/. Importing it loads nothing of the
network.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.errors import ConfigError, LocalProtocolError

if TYPE_CHECKING:
    from comfy_cluster.cluster import Cluster
    from comfy_cluster.discovery import Discovery
    from comfy_cluster.discovery.reflexive import Ask
    from comfy_cluster.work.host import Host
    from comfy_cluster.work.work import Work

logger = logging.getLogger("comfy_cluster")

_REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"

_lock = threading.RLock()
_cluster: Cluster | None = None
_host: Host | None = None
_work: Work | None = None


def build_cluster(config: ClusterConfig) -> Cluster:
    """A cluster that is not started yet."""
    from comfy_cluster.cluster import Cluster

    if config.is_single:
        return Cluster(config)
    from comfy_cluster import fastpath
    from comfy_cluster.transport.transport import Transport

    transport = Transport(config)
    discovery = build_discovery(config, ask_reflexive=transport.ask_reflexive)
    return Cluster(config, transport, discovery, engine_name=fastpath.ENGINE_NAME)


def build_discovery(
    config: ClusterConfig, *, is_observer: bool = False, ask_reflexive: Ask | None = None
) -> Discovery:
    """How this instance finds the others. `is_observer`: it only looks, as no member.

    `ask_reflexive`: the transport's; None: no address is published that a NAT gave.
    """
    if config.registration_mode is RegistrationMode.BROADCAST:
        from comfy_cluster.discovery.broadcast import BroadcastDiscovery

        return BroadcastDiscovery(config, is_observer=is_observer)
    if config.registration_mode is RegistrationMode.STUN:
        from comfy_cluster.discovery.stun import StunDiscovery

        return StunDiscovery(config, is_observer=is_observer, ask_reflexive=ask_reflexive)
    from comfy_cluster.discovery import StaticDiscovery
    from comfy_cluster.discovery.static import resolve_ipv4, resolve_ipv6

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


# Inside of ComfyUI.


def checked_config() -> ClusterConfig | None:
    """The settings, when ComfyUI loads the nodes; None: they are wrong, and the log says how."""
    try:
        config = ClusterConfig.from_env(os.environ)
    except ConfigError as error:
        logger.error("! ComfyUI Cluster does not start: %s", error)
        return None
    logger.setLevel(str(config.log_level))
    return config


def set_host(host: Host) -> None:
    """The ComfyUI process that this runs in."""
    global _host
    _host = host


def get_host() -> Host:
    """LocalProtocolError: this is no ComfyUI process."""
    if _host is None:
        raise LocalProtocolError("nodes run inside of ComfyUI only")
    return _host


def get_work() -> Work:
    """What this ComfyUI process does for the cluster, which it starts if need be.

    Raises what `get_cluster` raises; the next call then tries again.
    """
    global _work
    with _lock:
        if _work is None:
            _work = _make_work(get_host())
        return _work


def _make_work(host: Host) -> Work:
    config = ClusterConfig.from_env(os.environ)
    if config.is_single:  # nothing of the network is loaded
        from comfy_cluster.work.work import Work

        return Work(host)
    try:
        from comfy_cluster.work.service import ClusterWork

        cluster = build_cluster(config)
    except ImportError as error:
        if (error.name or "").startswith("comfy_cluster"):
            raise
        raise ConfigError(
            f"{error}. A cluster of several instances needs all of requirements.txt: "
            f"{sys.executable} -m pip install -r {_REQUIREMENTS}"
        ) from error
    # Listeners come before the start: an order may be the first that is heard.
    work = ClusterWork(cluster, host)
    cluster.start()
    atexit.register(cluster.close)
    return work
