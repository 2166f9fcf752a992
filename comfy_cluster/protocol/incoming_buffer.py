"""One buffer that a peer announced, as a value and its state; `incoming_buffers.py` moves it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from comfy_cluster.wire import BufferAnnouncement, MessageType, TransferKey

if TYPE_CHECKING:
    from typing_extensions import Buffer


class IncomingState(Enum):
    QUEUED = "waits for memory"
    RECEIVING = "has memory, or its share of the budget; the payload may come"
    ARRIVED = "complete; the layer above verifies it"
    HELD = "verified; the layer above has it, or nobody came for it yet"


@dataclass(slots=True, eq=False)
class IncomingBuffer:
    peer: int
    message_type: MessageType
    announcement: BufferAnnouncement
    order: int
    is_claimed: bool
    state: IncomingState = IncomingState.QUEUED
    memory: Buffer | None = None
    is_orphan: bool = False
    """Its source is lost: what arrived damaged does not come again."""
    is_returning: bool = False
    """It had its memory before, and is sent again because it did not arrive whole."""
    is_to_relay: bool = False
    """Others are behind this instance on its route, and count on it."""
    is_released: bool = False
    """The layer above is done with it; the memory is still relayed."""
    successor: tuple[int, BufferAnnouncement] | None = None
    """The same payload, announced by this peer over a newer route while this is verified."""

    @property
    def buffer_id(self) -> int:
        return self.announcement.buffer_id

    @property
    def key(self) -> TransferKey:
        return self.announcement.key

    @property
    def is_second_hand(self) -> bool:
        """It does not come from its source itself."""
        return self.peer != self.key.source

    @property
    def size(self) -> int:
        return self.announcement.size

    @property
    def is_shared(self) -> bool:
        """It comes through shared memory, and brings its memory along."""
        return self.announcement.is_shared

    @property
    def is_message(self) -> bool:
        """It holds one large message, which is for the core itself."""
        return self.message_type is MessageType.MESSAGE_BUFFER
