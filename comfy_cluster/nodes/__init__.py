"""The node classes. Ids are the names of the classes: saved workflows hold them."""

from __future__ import annotations

from comfy_cluster.nodes.base import ClusterNode, class_mappings
from comfy_cluster.nodes.batch import (
    ClusterFlattenBatchedImageList,
    ClusterGetInstanceWorkItemFromBatch,
    ClusterInsertAtIndex,
    ClusterSplitBatchToList,
    ClusterStridedReorder,
)
from comfy_cluster.nodes.broadcast import (
    ClusterBroadcastLoadedImage,
    ClusterBroadcastTensor,
    ClusterListenTensorBroadcast,
)
from comfy_cluster.nodes.fan_in import (
    ClusterFanInImages,
    ClusterFanInLatents,
    ClusterFanInMasks,
    ClusterGatherImages,
    ClusterGatherLatents,
    ClusterGatherMasks,
)
from comfy_cluster.nodes.fan_out import (
    ClusterFanOutImage,
    ClusterFanOutLatent,
    ClusterFanOutMask,
)
from comfy_cluster.nodes.info import ClusterInfo
from comfy_cluster.nodes.memory import ClusterFinallyFree, ClusterFreeNow
from comfy_cluster.nodes.subgraph import (
    ClusterEndSubgraph,
    ClusterStartSubgraph,
    ClusterUseSubgraph,
)
from comfy_cluster.nodes.workflow import ClusterExecuteCurrentWorkflow, ClusterExecuteWorkflow

NODE_CLASS_MAPPINGS: dict[str, type[ClusterNode]] = class_mappings(
    ClusterInfo,
    ClusterFreeNow,
    ClusterFinallyFree,
    ClusterExecuteWorkflow,
    ClusterExecuteCurrentWorkflow,
    ClusterStartSubgraph,
    ClusterEndSubgraph,
    ClusterUseSubgraph,
    ClusterBroadcastTensor,
    ClusterListenTensorBroadcast,
    ClusterBroadcastLoadedImage,
    ClusterFanOutImage,
    ClusterFanOutLatent,
    ClusterFanOutMask,
    ClusterFanInImages,
    ClusterFanInLatents,
    ClusterFanInMasks,
    ClusterGatherImages,
    ClusterGatherLatents,
    ClusterGatherMasks,
    ClusterGetInstanceWorkItemFromBatch,
    ClusterSplitBatchToList,
    ClusterFlattenBatchedImageList,
    ClusterInsertAtIndex,
    ClusterStridedReorder,
)
NODE_DISPLAY_NAME_MAPPINGS = {
    node_id: node_class.TITLE for node_id, node_class in NODE_CLASS_MAPPINGS.items()
}
