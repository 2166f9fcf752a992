"""TransferKey: the name under which sender and receiver of a buffer find each other."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_cluster.wire import bounds
from comfy_cluster.wire import messages_pb2 as pb

LONGEST_KEY_TEXT = 255  # bytes; two of them leave room for the rest of an announcement


@dataclass(frozen=True, slots=True)
class TransferKey:
    """Names one transfer in the cluster (spec.md section 4), whatever order things happen in."""

    job_id: str
    """Never used again by another job: late buffers of a job that ended are dropped by it."""
    node_id: str
    list_index: int = 0
    occurrence: int = 0
    source: int = 0
    """Index of the instance that sends."""
    part: int = 0
    """Number of the part, of a tensor that goes in several payloads."""

    def __post_init__(self) -> None:
        bounds.check_text("job_id", self.job_id, LONGEST_KEY_TEXT)
        bounds.check_text("node_id", self.node_id, LONGEST_KEY_TEXT)
        bounds.check_range("list_index", self.list_index, 0, bounds.LARGEST_U32)
        bounds.check_range("occurrence", self.occurrence, 0, bounds.LARGEST_U32)
        bounds.check_range("source", self.source, 0, bounds.LARGEST_INSTANCE_INDEX)
        bounds.check_range("part", self.part, 0, bounds.LARGEST_U32)

    def __str__(self) -> str:
        place = f"{self.job_id}/{self.node_id}[{self.list_index}]#{self.occurrence}"
        part = f", part {self.part}" if self.part else ""
        return f"{place} from instance {self.source}{part}"


def to_protobuf(key: TransferKey) -> pb.TransferKey:
    return pb.TransferKey(
        job_id=key.job_id,
        node_id=key.node_id,
        list_index=key.list_index,
        occurrence=key.occurrence,
        source=key.source,
        part=key.part,
    )


def from_protobuf(message: pb.TransferKey) -> TransferKey:
    return TransferKey(
        job_id=message.job_id,
        node_id=message.node_id,
        list_index=message.list_index,
        occurrence=message.occurrence,
        source=message.source,
        part=message.part,
    )
