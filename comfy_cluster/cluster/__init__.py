"""Several instances that work as one: membership, state, and the collectives.

Called by the layers above through `Cluster`; what it needs from below is written in `ports.py`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfy_cluster.cluster.cluster import Cluster
    from comfy_cluster.cluster.info import ClusterInfo
    from comfy_cluster.cluster.keys import CollectiveKey
    from comfy_cluster.cluster.state import InstanceState

__all__ = ["Cluster", "ClusterInfo", "CollectiveKey", "InstanceState"]

_MODULES = {
    "Cluster": "cluster",
    "ClusterInfo": "info",
    "CollectiveKey": "keys",
    "InstanceState": "state",
}


def __getattr__(name: str) -> Any:
    """Loads torch for what needs it only: `comfy-cluster status` shall answer at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
