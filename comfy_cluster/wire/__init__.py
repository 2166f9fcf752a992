"""Messages as frozen values, and their bytes: stateless and clockless.

`X(...).pack()` gives bytes and `X.parse(data)` gives the value back. A value cannot be wrong:
making one with a field out of bounds raises LocalProtocolError, and `parse` raises
RemoteProtocolError and nothing else, whatever the bytes are. The schema is proto/messages.proto.
Used by `protocol/` and by whoever needs a `TransferKey` or a `MessageType`.
"""

from comfy_cluster.wire.announce import PROTOCOL_VERSION, Announce, InstanceRole, Introduction
from comfy_cluster.wire.beacon import LARGEST_BEACON, Beacon, is_tagged_with
from comfy_cluster.wire.buffers import (
    DIGEST_SIZE,
    LARGEST_ATTEMPT,
    LARGEST_BUFFER,
    BufferAccept,
    BufferAnnouncement,
    BufferCancel,
    BufferDone,
    BufferFailed,
    FailureCode,
)
from comfy_cluster.wire.control import LARGEST_ACK, Ack, Goodbye
from comfy_cluster.wire.message import (
    BUFFER_TYPES,
    LARGEST_MESSAGE_PAYLOAD,
    PROTOCOL_TYPES,
    Message,
    MessageType,
)
from comfy_cluster.wire.route import LARGEST_RELAY, Route
from comfy_cluster.wire.transfer_key import LONGEST_KEY_TEXT, TransferKey

__all__ = [
    "BUFFER_TYPES",
    "DIGEST_SIZE",
    "LARGEST_ACK",
    "LARGEST_ATTEMPT",
    "LARGEST_BEACON",
    "LARGEST_BUFFER",
    "LARGEST_MESSAGE_PAYLOAD",
    "LARGEST_RELAY",
    "LONGEST_KEY_TEXT",
    "PROTOCOL_TYPES",
    "PROTOCOL_VERSION",
    "Ack",
    "Announce",
    "Beacon",
    "BufferAccept",
    "BufferAnnouncement",
    "BufferCancel",
    "BufferDone",
    "BufferFailed",
    "FailureCode",
    "Goodbye",
    "InstanceRole",
    "Introduction",
    "Message",
    "MessageType",
    "Route",
    "TransferKey",
    "is_tagged_with",
]
