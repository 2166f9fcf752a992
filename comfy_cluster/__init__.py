"""ComfyUI Cluster: several ComfyUI processes that work as one.

Importing this package starts nothing, reads no setting, and imports nothing but the standard
library: the build reads the version from here, and ComfyUI imports it on every start.
"""

from __future__ import annotations

from comfy_cluster.config import ClusterConfig
from comfy_cluster.errors import ClusterError

__version__ = "0.1.0"

__all__ = ["ClusterConfig", "ClusterError", "__version__"]
