"""What ComfyUI loads: the root `__init__.py` calls `load`, inside of ComfyUI only.

Loading opens no socket, starts no thread and looks up no name; a wrong setting is one line in the
log, and what the nodes say when they run. The cluster starts with ComfyUI's server.
"""

from __future__ import annotations

import logging
from typing import Any

from comfy_cluster import runtime
from comfy_cluster.comfyui.loading import ComfyHost, add_routes, call_at_start, server_of_comfyui
from comfy_cluster.errors import ClusterError
from comfy_cluster.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

logger = logging.getLogger("comfy_cluster")


def load() -> tuple[dict[str, Any], dict[str, str]]:
    """Hooks into ComfyUI's server; returns the node classes and their display names."""
    server = server_of_comfyui()
    config = runtime.checked_config()
    runtime.set_host(ComfyHost(server, is_leader=config is None or config.is_leader))
    add_routes(server, runtime.get_work)
    if config is not None and not config.is_single:
        call_at_start(server, _start)
    return dict(NODE_CLASS_MAPPINGS), dict(NODE_DISPLAY_NAME_MAPPINGS)


def _start() -> None:
    try:
        runtime.get_work()
    except ClusterError as error:
        logger.error("! ComfyUI Cluster does not start: %s", error)
