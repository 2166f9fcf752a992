"""ACK and GOODBYE. HEARTBEAT has no class: its payload is empty."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_cluster.wire import bounds
from comfy_cluster.wire import messages_pb2 as pb

# Ids in one ACK: as varints of 10 bytes they still fit a message packet of 1,168 bytes.
LARGEST_ACK = 100
LONGEST_GOODBYE = 256


@dataclass(frozen=True, slots=True)
class Ack:
    """These messages arrived."""

    message_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        bounds.check_range("number of ids in an ACK", len(self.message_ids), 1, LARGEST_ACK)
        for message_id in self.message_ids:
            bounds.check_range("message_id", message_id, 0, bounds.LARGEST_U64)

    def pack(self) -> bytes:
        return pb.Ack(message_ids=self.message_ids).SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> Ack:
        message = bounds.decode(pb.Ack, data)
        with bounds.parsing_of("ACK"):
            count = len(message.message_ids)
            bounds.check_range("number of ids in an ACK", count, 1, LARGEST_ACK)
            return cls(tuple(message.message_ids))


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender is closing; `reason` is shown and means nothing else."""

    reason: str = ""

    def __post_init__(self) -> None:
        bounds.check_text("reason", self.reason, LONGEST_GOODBYE)

    def pack(self) -> bytes:
        return pb.Goodbye(reason=self.reason).SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> Goodbye:
        message = bounds.decode(pb.Goodbye, data)
        with bounds.parsing_of("GOODBYE"):
            return cls(reason=message.reason)
