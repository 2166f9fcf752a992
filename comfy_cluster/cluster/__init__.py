"""Several instances that work as one: membership, state, and the collectives.

Called by the layers above through `Cluster`; what it needs from below is written in `ports.py`.
"""

from __future__ import annotations

from comfy_cluster.cluster.cluster import Cluster
from comfy_cluster.cluster.info import ClusterInfo
from comfy_cluster.cluster.keys import CollectiveKey
from comfy_cluster.cluster.state import InstanceState

__all__ = ["Cluster", "ClusterInfo", "CollectiveKey", "InstanceState"]
