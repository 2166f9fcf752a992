"""Messages of the layers above: small ones in a packet, large ones as a buffer.

How it works: a message whose encoded form does not fit one packet is announced with MESSAGE_BUFFER;
the buffer holds the encoded ClusterMessage. Its receiver verifies the digest itself, acts on the
message once, and the sender's message counts as delivered then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from comfy_cluster.codec.payload import digest_of
from comfy_cluster.errors import (
    ClusterError,
    LocalProtocolError,
    RemoteProtocolError,
    TransferCancelled,
)
from comfy_cluster.fastpath import MESSAGE_PAYLOAD_LIMIT
from comfy_cluster.protocol import events
from comfy_cluster.protocol.courier import Courier
from comfy_cluster.protocol.incoming_buffer import IncomingBuffer
from comfy_cluster.protocol.outgoing_buffer import OutgoingPayload
from comfy_cluster.protocol.outgoing_buffers import OutgoingBuffers
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.wire import BUFFER_TYPES, PROTOCOL_TYPES, Message, MessageType, TransferKey

_RESERVED = PROTOCOL_TYPES | BUFFER_TYPES


class UserMessages:
    """Sends, and reports each message that needs an ACK in exactly one event."""

    def __init__(
        self,
        instance_index: int,
        *,
        courier: Courier,
        outgoing: OutgoingBuffers,
        stats: ProtocolStats,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._courier = courier
        self._outgoing = outgoing
        self._stats = stats
        self._emit = emit
        self._large_key = TransferKey("", "", source=instance_index)
        self._peers: dict[int, int] = {}
        self._transfers: dict[int, tuple[int, bool]] = {}

    def __len__(self) -> int:
        return len(self._peers) + len(self._transfers)

    def send(
        self, peer: int, message_type: MessageType, payload: bytes, *, require_ack: bool, now: float
    ) -> int:
        """Return the message's id. Raises LocalProtocolError for what cannot be sent at all."""
        if message_type in _RESERVED:
            raise LocalProtocolError(f"{message_type.name} is sent by the protocol core only")
        message = self._courier.new_message(peer, message_type, payload, require_ack=require_ack)
        packed = message.pack()
        if len(packed) > MESSAGE_PAYLOAD_LIMIT:
            self._send_large(message, packed, now)
        elif require_ack:
            self._peers[message.message_id] = peer
            self._courier.post(message, packed, self, now)
        else:
            self._courier.send_once(message, packed)
        return message.message_id

    def broadcast(
        self,
        peers: Iterable[int],
        message_type: MessageType,
        payload: bytes,
        *,
        require_ack: bool,
        now: float,
    ) -> dict[int, int]:
        """Send to each of `peers`; return the message ids by peer."""
        return {
            peer: self.send(peer, message_type, payload, require_ack=require_ack, now=now)
            for peer in list(peers)
        }

    def cancel(self, message_id: int, now: float) -> bool:
        """Give a message up; it may have arrived already. False: it is over, or has no ACK."""
        for transfer_id, (large_id, _) in self._transfers.items():
            if large_id == message_id:
                return self._outgoing.cancel(transfer_id, "the message was cancelled", now)
        peer = self._peers.pop(message_id, None)
        if peer is None:
            return False
        self._courier.cancel(peer, message_id, now)
        error = TransferCancelled(
            f"message {message_id} to instance {peer} was given up", peer=peer
        )
        self._emit(events.MessageFailed(message_id, error))
        return True

    def on_message_delivered(self, message_id: int, now: float) -> None:
        if self._peers.pop(message_id, None) is not None:
            self._emit(events.MessageDelivered(message_id))

    def on_message_failed(self, message_id: int, error: ClusterError, now: float) -> None:
        if self._peers.pop(message_id, None) is not None:
            self._emit(events.MessageFailed(message_id, error))

    # Large messages

    def _send_large(self, message: Message, packed: bytes, now: float) -> None:
        transfer_id = self._outgoing.send(
            message.target_instance,
            self._large_key,
            OutgoingPayload(b"", packed, digest_of(packed)),
            message_type=MessageType.MESSAGE_BUFFER,
            listener=self,
            now=now,
        )
        self._transfers[transfer_id] = (message.message_id, message.require_ack)

    def on_transfer_done(self, transfer_id: int, now: float) -> None:
        message_id, is_reported = self._transfers.pop(transfer_id)
        if is_reported:
            self._emit(events.MessageDelivered(message_id))

    def on_transfer_failed(self, transfer_id: int, error: ClusterError, now: float) -> None:
        message_id, is_reported = self._transfers.pop(transfer_id)
        if is_reported:
            self._emit(events.MessageFailed(message_id, error))


def is_for_user(message_type: MessageType) -> bool:
    """Whether a received message goes to the layers above as it is."""
    return message_type not in _RESERVED


def parse_large(buffer: IncomingBuffer, instance_index: int) -> Message | None:
    """The message in a complete MESSAGE_BUFFER; None: it is damaged.

    Raises RemoteProtocolError for intact bytes that are no message of this peer for this instance.
    """
    assert buffer.memory is not None
    packed = bytes(memoryview(buffer.memory).cast("B")[: buffer.size])
    if digest_of(packed) != buffer.announcement.digest:
        return None
    message = Message.parse(packed)
    is_ours = message.sender_instance == buffer.peer and message.target_instance == instance_index
    if not is_ours or not is_for_user(message.message_type):
        raise RemoteProtocolError(f"a {message.message_type.name} does not belong into a buffer")
    return message
