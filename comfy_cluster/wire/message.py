"""The envelope of every message, and the list of message types."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from comfy_cluster.wire import bounds
from comfy_cluster.wire import messages_pb2 as pb

# Larger payloads belong into a buffer of their own; this bounds what one message makes a receiver
# allocate and hash on its control thread.
LARGEST_MESSAGE_PAYLOAD = 64 << 20


class MessageType(IntEnum):
    """The same names and numbers as in proto/messages.proto, without the unspecified 0."""

    ANNOUNCE = 1
    ACK = 2
    HEARTBEAT = 3
    GOODBYE = 4
    BUFFER_ACCEPT = 5
    BUFFER_DONE = 6
    BUFFER_FAILED = 7
    BUFFER_CANCEL = 8
    MESSAGE_BUFFER = 9
    DISTRIBUTE_BUFFER_BROADCAST = 16
    DISTRIBUTE_BUFFER_FANOUT = 17
    DISTRIBUTE_BUFFER_FANIN = 18
    DISTRIBUTE_BUFFER_GATHER = 19
    DISTRIBUTE_PROMPT = 32
    EXECUTE_WORKFLOW = 33
    EXECUTION_RESULT = 34
    EXECUTION_ERROR = 35
    EXECUTION_PROGRESS = 36
    EXECUTION_CANCEL = 37
    FREE_MEMORY = 38
    RELOAD_NODES = 39


PROTOCOL_TYPES = frozenset(kind for kind in MessageType if kind <= MessageType.MESSAGE_BUFFER)
"""Types that protocol cores send each other; the layers above never send or see them."""

BUFFER_TYPES = frozenset(
    {
        MessageType.DISTRIBUTE_BUFFER_BROADCAST,
        MessageType.DISTRIBUTE_BUFFER_FANOUT,
        MessageType.DISTRIBUTE_BUFFER_FANIN,
        MessageType.DISTRIBUTE_BUFFER_GATHER,
    }
)
"""Types that announce a buffer of the layers above."""


@dataclass(frozen=True, slots=True)
class Message:
    """One control message; `payload` is what `message_type` says."""

    message_id: int
    """u64, unique among the messages of its sender."""
    message_type: MessageType
    sender_instance: int
    target_instance: int
    require_ack: bool = False
    payload: bytes = b""

    def __post_init__(self) -> None:
        bounds.check_range("message_id", self.message_id, 0, bounds.LARGEST_U64)
        highest = bounds.LARGEST_INSTANCE_INDEX
        bounds.check_range("sender_instance", self.sender_instance, 0, highest)
        bounds.check_range("target_instance", self.target_instance, 0, highest)
        size = len(self.payload)
        bounds.check_range("size of the message's payload", size, 0, LARGEST_MESSAGE_PAYLOAD)

    def pack(self) -> bytes:
        return pb.ClusterMessage(
            message_id=self.message_id,
            message_type=self.message_type.name,
            sender_instance=self.sender_instance,
            target_instance=self.target_instance,
            require_ack=self.require_ack,
            payload=self.payload,
        ).SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> Message:
        """Raises RemoteProtocolError, also for a message type that this version does not know."""
        message = bounds.decode(pb.ClusterMessage, data)
        with bounds.parsing_of("message"):
            return cls(
                message_id=message.message_id,
                message_type=bounds.as_enum(MessageType, message.message_type),
                sender_instance=message.sender_instance,
                target_instance=message.target_instance,
                require_ack=message.require_ack,
                payload=message.payload,
            )
