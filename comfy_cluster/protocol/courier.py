"""Numbers messages, packs them, and puts them into the outbox of their peer.

Used inside `protocol/` by all who send messages.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from comfy_cluster.errors import ClusterError, LocalProtocolError, TransferTimeout
from comfy_cluster.protocol.engine_port import EnginePort
from comfy_cluster.protocol.outbox import MessageListener
from comfy_cluster.protocol.peers import Peer
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.wire import Message, MessageType


class Courier:
    """`on_unanswered(peer, now)`: a message between the cores was never acknowledged."""

    def __init__(
        self,
        instance_index: int,
        *,
        engine: EnginePort,
        rng: random.Random,
        peers: Mapping[int, Peer],
        stats: ProtocolStats,
        on_unanswered: Callable[[int, float], None],
    ) -> None:
        self._instance_index = instance_index
        self._engine = engine
        self._peers = peers
        self._stats = stats
        # Far from the ids of an earlier run of this instance, whose last messages may still arrive.
        self._next_message_id = rng.getrandbits(31) << 32 | 1
        self._control_listener = _ControlListener(on_unanswered)

    def new_message(
        self, peer: int, message_type: MessageType, payload: bytes, *, require_ack: bool = True
    ) -> Message:
        """Raises LocalProtocolError when there is no such peer, or for a payload too large."""
        if peer not in self._peers:
            raise LocalProtocolError(f"instance {peer} is not a peer of this instance")
        message_id = self._next_message_id
        self._next_message_id += 1
        return Message(
            message_id=message_id,
            message_type=message_type,
            sender_instance=self._instance_index,
            target_instance=peer,
            require_ack=require_ack,
            payload=payload,
        )

    def post(self, message: Message, packed: bytes, listener: MessageListener, now: float) -> None:
        """Deliver a message that fits one packet; it waits for the connection if need be."""
        self._peers[message.target_instance].outbox.post(message, packed, listener, now)

    def cancel(self, peer: int, message_id: int, now: float) -> bool:
        """Send a message no more; its listener is not called. False: it is over already."""
        member = self._peers.get(peer)
        return member is not None and member.outbox.cancel(message_id, now)

    def send_once(self, message: Message, packed: bytes) -> None:
        """Send without ACK; dropped when the peer is not connected."""
        if not self._peers[message.target_instance].is_connected:
            self._stats.messages_dropped += 1
            return
        self._engine.send_message(message.target_instance, packed)

    def send_control_once(self, peer: int, message_type: MessageType, payload: bytes = b"") -> None:
        """Send a message between the cores without ACK, to an observer too."""
        message = self.new_message(peer, message_type, payload, require_ack=False)
        if self._peers[peer].is_observer:
            self._engine.send_message(peer, message.pack())
        else:
            self.send_once(message, message.pack())

    def post_control(
        self, peer: int, message_type: MessageType, payload: bytes, now: float
    ) -> None:
        """Deliver a message between the cores; dropped when the peer is not connected, because the
        loss of a connection ends all that such a message could be about."""
        member = self._peers.get(peer)
        if member is not None and member.is_connected:
            message = self.new_message(peer, message_type, payload)
            self.post(message, message.pack(), self._control_listener, now)


class _ControlListener:
    """A peer that shows signs of life but acknowledges nothing would leave transfers waiting."""

    def __init__(self, on_unanswered: Callable[[int, float], None]) -> None:
        self._on_unanswered = on_unanswered

    def on_message_delivered(self, message_id: int, now: float) -> None:
        pass

    def on_message_failed(self, message_id: int, error: ClusterError, now: float) -> None:
        if isinstance(error, TransferTimeout) and error.peer is not None:
            self._on_unanswered(error.peer, now)
